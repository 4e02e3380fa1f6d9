"""Every request of the contract, cut off at every byte: nothing changes."""

from __future__ import annotations

import json
import socket
import uuid
from pathlib import Path

import pytest

from fault_injection.clients import Client
from fault_injection.servers import serving, wait_until

LISTENING, TIME_WAIT = "0A", "06"  # of a connection in /proc/net/tcp

TITLE = {"title": "Buy oat milk"}
MERGE_PATCH = "application/merge-patch+json"

# By name: method, path, body, fields, and the status of the whole request.
OPERATIONS = {
    "create": ("POST", "/tasks", TITLE, {}, 201),
    "create once": ("POST", "/tasks", TITLE, {"Idempotency-Key": "one"}, 201),
    "create named": ("PUT", f"/tasks/{uuid.uuid4()}", TITLE, {"If-None-Match": "*"}, 201),
    "put": ("PUT", "/tasks/{live}", {"title": "x"}, {}, 200),
    "patch": ("PATCH", "/tasks/{live}", {"title": "x"}, {"Content-Type": MERGE_PATCH}, 200),
    "complete": ("PATCH", "/tasks/{live}/complete", {"completed": True}, {}, 200),
    "complete without body": ("PATCH", "/tasks/{live}/complete", None, {}, 200),
    "delete": ("DELETE", "/tasks/{live}", {}, {}, 204),
    "delete without body": ("DELETE", "/tasks/{live}", None, {}, 204),
    "restore": ("POST", "/tasks/{deleted}/restore", {}, {}, 200),
    "restore without body": ("POST", "/tasks/{deleted}/restore", None, {}, 200),
    "erase": ("DELETE", "", {}, {}, 204),
    "erase without body": ("DELETE", "", None, {}, 204),
    "get": ("GET", "/tasks/{live}", {}, {}, 200),
    "list": ("GET", "/tasks", {}, {}, 200),
    "changes": ("GET", "/changes?since=0", {}, {}, 200),
}
READS = {"get", "list", "changes"}
CASES = [
    pytest.param(name, chunked, ending, id=f"{name}-{'chunks' if chunked else 'length'}-{ending}")
    for name, (_, _, body, _, _) in OPERATIONS.items()
    for chunked in ((False,) if body is None else (False, True))
    for ending in ("shut down", "closed")
]


@pytest.fixture(scope="module")
def api(database_url):
    with serving(database_url, WEB_CONCURRENCY="1", LOG_LEVEL="warning") as server:
        yield server
        assert server.log.read_text().count("\n") <= 1  # about AUTH_MODE


def request_bytes(
    method: str, path: str, body: object, fields: dict[str, str], *, chunked: bool
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a"]
    content = b""
    if body is not None:
        content = json.dumps(body).encode()
        fields = {"Content-Type": "application/json"} | fields
        if chunked:
            half = len(content) // 2
            chunks = (content[:half], content[half:], b"")
            content = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            fields |= {"Transfer-Encoding": "chunked"}
        else:
            fields |= {"Content-Length": str(len(content))}
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunked", "ending"), CASES)
def test_a_request_that_is_cut_off_changes_nothing(api, connection, user_id, name, chunked, ending):
    method, path, body, fields, status = OPERATIONS[name]
    ids = tasks_of(api, user_id)
    whole = request_bytes(
        method, f"/api/{user_id}{path.format_map(ids)}", body, fields, chunked=chunked
    )
    before = state(connection, user_id)

    for length in range(len(whole)):
        send(api.address, whole[:length], ending)
        if ending == "shut down":
            assert state(connection, user_id) == before, whole[:length]
    wait_until(lambda: not connected(api.port), "the server has closed every connection")

    assert state(connection, user_id) == before
    with socket.create_connection(api.address, timeout=30) as client:
        client.sendall(whole)
        assert client.recv(65536).startswith(b"HTTP/1.1 %d " % status)
    assert (state(connection, user_id) == before) is (name in READS)


def tasks_of(api, user_id: str) -> dict[str, str]:
    """The ids of a new task of the user, and of one in the trash."""
    with Client(api.address) as client:
        ids = [client.request("POST", f"/api/{user_id}/tasks", TITLE).json["id"] for _ in range(2)]
        assert client.request("DELETE", f"/api/{user_id}/tasks/{ids[1]}").status == 204
    return {"live": ids[0], "deleted": ids[1]}


def state(connection, user_id: str) -> list[tuple]:
    """All rows of the user, whole."""
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


def send(address, sent: bytes, ending: str) -> None:
    """Send that, and no more. A client that shuts down waits until the server closes, too."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(sent)
        if ending == "shut down":
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass


def connected(port: int) -> bool:
    """Whether the server on this port has connections that it has not closed."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [line.split()[3] for line in lines if line.split()[1].endswith(f":{port:04X}")]
    return bool(set(states) - {LISTENING, TIME_WAIT})
