"""Every operation: a request that is truncated at any byte changes nothing."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path

import pytest

from fault_injection.clients import Client
from fault_injection.servers import serving, wait_until

LISTEN, TIME_WAIT = "0A", "06"  # states of a connection in /proc/net/tcp

TITLE = {"title": "Buy oat milk"}
MERGE_PATCH = "application/merge-patch+json"

# By name: method, path, body, headers, and the status of the complete request.
OPERATIONS = {
    "create": ("POST", "/tasks", TITLE, {}, 201),
    "create once": ("POST", "/tasks", TITLE, {"Idempotency-Key": "one"}, 201),
    "create with an id": ("POST", "/tasks", {"id": str(uuid.uuid4()), **TITLE}, {}, 201),
    "put": ("PUT", "/tasks/{live}", {"title": "x"}, {}, 200),
    "patch": ("PATCH", "/tasks/{live}", {"title": "x"}, {"Content-Type": MERGE_PATCH}, 200),
    "complete": ("PATCH", "/tasks/{live}/complete", {"completed": True}, {}, 200),
    "complete without body": ("PATCH", "/tasks/{live}/complete", None, {}, 200),
    "delete": ("DELETE", "/tasks/{live}", {}, {}, 204),
    "delete without body": ("DELETE", "/tasks/{live}", None, {}, 204),
    "restore": ("POST", "/tasks/{deleted}/restore", {}, {}, 200),
    "restore without body": ("POST", "/tasks/{deleted}/restore", None, {}, 200),
    "empty trash": ("DELETE", "/trash", {}, {}, 204),
    "empty trash without body": ("DELETE", "/trash", None, {}, 204),
    "erase": ("DELETE", "", {}, {}, 204),
    "erase without body": ("DELETE", "", None, {}, 204),
    "get": ("GET", "/tasks/{live}", {}, {}, 200),
    "list": ("GET", "/tasks", {}, {}, 200),
    "changes": ("GET", "/changes?since=0", {}, {}, 200),
    "trash": ("GET", "/trash", {}, {}, 200),
}
READS = {"get", "list", "changes", "trash"}
CASES = [
    pytest.param(
        name, chunked, close_mode, id=f"{name}-{'chunks' if chunked else 'length'}-{close_mode}"
    )
    for name, (_, _, body, _, _) in OPERATIONS.items()
    for chunked in ((False,) if body is None else (False, True))
    for close_mode in ("shut down", "closed")
]


@pytest.fixture(scope="module")
def api(database_url):
    with serving(database_url, WEB_CONCURRENCY="1", LOG_LEVEL="warning") as server:
        yield server
        assert server.log.read_text().count("\n") <= 1  # the warning about AUTH_MODE


def request_bytes(
    method: str, path: str, body: object, headers: dict[str, str], *, chunked: bool
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a"]
    content = b""
    if body is not None:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        if chunked:
            half = len(content) // 2
            chunks = (content[:half], content[half:], b"")
            content = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            headers |= {"Transfer-Encoding": "chunked"}
        else:
            headers |= {"Content-Length": str(len(content))}
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunked", "close_mode"), CASES)
def test_truncated_request_changes_nothing(api, connection, user_id, name, chunked, close_mode):
    method, path, body, headers, status = OPERATIONS[name]
    task_ids = create_tasks(api, user_id)
    whole = request_bytes(
        method, f"/api/{user_id}{path.format_map(task_ids)}", body, headers, chunked=chunked
    )
    before = read_rows(connection, user_id)

    for length in range(len(whole)):
        send_part(api.address, whole[:length], close_mode)
        if close_mode == "shut down":
            assert read_rows(connection, user_id) == before, whole[:length]
    wait_until(lambda: not has_open_connections(api.port), "the server has closed every connection")

    assert read_rows(connection, user_id) == before
    with socket.create_connection(api.address, timeout=30) as client:
        client.sendall(whole)
        assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)
    assert (read_rows(connection, user_id) == before) is (name in READS)


def create_tasks(api, user_id: str) -> dict[str, str]:
    """Create a task and a task in the trash; return their ids."""
    with Client(api.address) as client:
        task_ids = [
            client.request("POST", f"/api/{user_id}/tasks", TITLE).json["id"] for _ in range(2)
        ]
        assert client.request("DELETE", f"/api/{user_id}/tasks/{task_ids[1]}").status == 204
    return {"live": task_ids[0], "deleted": task_ids[1]}


def read_rows(connection, user_id: str) -> list[tuple]:
    """Return all rows of the user."""
    return connection.execute(
        """
        SELECT 'users', to_jsonb(users) FROM users WHERE id = %(user)s
        UNION ALL SELECT 'tasks', to_jsonb(tasks) FROM tasks WHERE user_id = %(user)s
        UNION ALL SELECT 'keys', to_jsonb(idempotency_keys) FROM idempotency_keys
            WHERE user_id = %(user)s
        ORDER BY 1, 2
        """,
        {"user": user_id},
    ).fetchall()


def send_part(address, content: bytes, close_mode: str) -> None:
    """Send these bytes and close; with "shut down", first wait until the server closes."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(content)
        if close_mode == "shut down":
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass


def has_open_connections(port: int) -> bool:
    """Return whether the server on this port has connections that it has not closed."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [line.split()[3] for line in lines if line.split()[1].endswith(f":{port:04X}")]
    return bool(set(states) - {LISTEN, TIME_WAIT})
