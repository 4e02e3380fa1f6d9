"""A response is lost after its write is applied: from the database to the API, or to the client.

The API retries a statement whose outcome is unknown, and detects that its first attempt was
applied. A client sends the same request again. In both cases the write is applied once, and the
client gets the response of one write.
"""

from __future__ import annotations

import itertools
import uuid
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.change_log import count_changes, create_change_log
from fault_injection.clients import Client, Response
from fault_injection.proxy import Proxy, is_complete_http_response, is_complete_postgresql_response
from fault_injection.servers import postgresql, serving, url_through_proxy
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from fault_injection.servers import Postgres

# The headers that differ between a response and its replay.
VARYING_HEADERS = {"date", "x-request-id", "idempotent-replayed"}


class Write(NamedTuple):
    """A request to a task with `changes` earlier changes, and the expected result."""

    method: str
    path: str
    body: dict[str, str] | None
    headers: dict[str, str]
    status: int
    # The title, whether it is completed, whether it is in the trash.
    expected_row: tuple[str, bool, bool]
    changes: int = 1


IF_MATCH = {"If-Match": "{etag}"}
WRITES = {
    "POST": Write("POST", "", {"title": "Oats"}, {}, 201, ("Oats", False, False), 0),
    "POST with a key": Write(
        *("POST", "", {"title": "Oats"}, {"Idempotency-Key": "{key}"}),
        *(201, ("Oats", False, False), 0),
    ),
    "POST with an id": Write(
        *("POST", "", {"title": "Oats", "id": "{key}"}, {}),
        *(201, ("Oats", False, False), 0),
    ),
    "PUT": Write("PUT", "/{id}", {"title": "Rye"}, IF_MATCH, 200, ("Rye", False, False)),
    "PATCH": Write("PATCH", "/{id}", {"title": "Rye"}, IF_MATCH, 200, ("Rye", False, False)),
    "complete": Write("PATCH", "/{id}/complete", None, IF_MATCH, 200, ("Milk", True, False)),
    "DELETE": Write("DELETE", "/{id}", None, IF_MATCH, 204, ("Milk", False, True)),
    "DELETE without If-Match": Write("DELETE", "/{id}", None, {}, 204, ("Milk", False, True)),
    "restore": Write("POST", "/{id}/restore", None, IF_MATCH, 200, ("Milk", False, False), 2),
    "restore without If-Match": Write(
        "POST", "/{id}/restore", None, {}, 200, ("Milk", False, False), 2
    ),
}

# A client sends a POST without an id and a key once: sent again, it creates another task.
REPEATABLE = [name for name in WRITES if name != "POST"]


class Request(NamedTuple):
    """A write of a user without other tasks, and the revision of its task before, or 0."""

    user: uuid.UUID
    method: str
    path: str
    body: dict[str, str] | None
    headers: dict[str, str]
    revision: int

    def send(self, client: Client) -> Response:
        return client.request(self.method, self.path, self.body, self.headers)


def run(*, short: bool) -> None:
    times = 30 if short else 1000
    with postgresql() as server:
        with server.connect() as connection:
            create_change_log(connection)
        lose_responses_of_database(server, times)
        lose_responses_of_api(server, times)


def prepare_request(client: Client, write: Write) -> Request:
    """Make the task of a new user as the write needs it, and return the request."""
    user, key = uuid.uuid4(), str(uuid.uuid4())
    tasks = f"/api/{user}/tasks"
    task = {"id": "", "revision": 0}
    if write.changes:
        task = client.request("POST", tasks, {"title": "Milk"}).json
    if write.changes == 2:
        assert client.request("DELETE", f"{tasks}/{task['id']}").status == 204
        (entry,) = client.request("GET", f"/api/{user}/trash").json
        task = entry["value"]
    tag = etag(task["revision"])
    body = write.body and {name: text.format(key=key) for name, text in write.body.items()}
    headers = {name: text.format(key=key, etag=tag) for name, text in write.headers.items()}
    path = tasks + write.path.format(**task)
    return Request(user, write.method, path, body, headers, task["revision"])


def check_result(server: Postgres, name: str, request: Request, response: Response) -> None:
    """Check that the write was applied once, and that the response has its result."""
    write = WRITES[name]
    assert response.status == write.status, f"{name}: {response}"
    with server.connect() as connection:
        rows = connection.execute(
            "SELECT tasks.id::text, title, completed, deleted_at IS NOT NULL, tasks.revision,"
            " users.revision FROM tasks JOIN users ON users.id = user_id WHERE user_id = %s",
            [request.user],
        ).fetchall()
        assert len(rows) == 1, f"{name}: {rows}"
        task_id, *columns, revision, latest = rows[0]
        changes = count_changes(connection)[task_id]
    assert tuple(columns) == write.expected_row, f"{name}: {rows}"
    assert changes == write.changes + 1, f"{name}: {changes} changes"
    assert request.revision < revision == latest, f"{name}: {request}, {rows}"
    if response.status != 204:
        assert response.headers["etag"] == etag(revision), f"{name}: {response.headers}"
        body = response.json
        members = [body["id"], body["title"], body["completed"], False, body["revision"]]
        assert members == [task_id, *columns, revision], f"{name}: {response}"


def lose_responses_of_database(server: Postgres, times: int) -> None:
    counts = dict.fromkeys(WRITES, 0)
    with (
        Proxy(server.address, is_complete_postgresql_response) as proxy,
        serving(url_through_proxy(server.url(), proxy)) as api,
        Client(api.address) as client,
    ):
        for _, name in zip(range(times), itertools.cycle(WRITES), strict=False):
            request = prepare_request(client, WRITES[name])
            # The user id of the statement, in binary and in two forms of text.
            user = request.user
            proxy.lose_response(user.bytes, user.hex.encode(), str(user).encode())
            response = request.send(client)
            assert not proxy.armed, f"{name}: no response was lost"
            assert "idempotent-replayed" not in response.headers, f"{name}: {response.headers}"
            check_result(server, name, request, response)
            counts[name] += 1
        assert len(proxy.lost) == times
    print_figures(
        responses_lost_between_database_and_API=times,
        **counts,
        applied_twice_or_with_a_wrong_response=0,
    )


def lose_responses_of_api(server: Postgres, times: int) -> None:
    with (
        serving(server.url()) as api,
        Proxy(api.address, is_complete_http_response) as proxy,
        Client(proxy.address) as client,
    ):
        for _, name in zip(range(times), itertools.cycle(REPEATABLE), strict=False):
            request = prepare_request(client, WRITES[name])
            proxy.lose_response(str(request.user).encode())
            try:
                response = request.send(client)
            except (OSError, HTTPException):
                pass
            else:
                raise AssertionError(f"{name}: the response was not lost: {response}")

            response = request.send(client)

            check_result(server, name, request, response)
            first = parse_response(proxy.lost[-1])
            assert (response.status, response.body) == (first.status, first.body), (
                f"{name}: {first}: {response}"
            )
            assert constant_headers(response) == constant_headers(first), (
                f"{name}: {first.headers}: {response.headers}"
            )
            assert "idempotent-replayed" not in first.headers
            is_replayed = response.headers.get("idempotent-replayed") == "true"
            assert is_replayed is ("Idempotency-Key" in request.headers), response.headers
    print_figures(
        responses_lost_between_API_and_client=times,
        applied_twice=0,
        different_second_responses=0,
    )


def parse_response(received: bytes) -> Response:
    lines = BytesIO(received)
    status = int(lines.readline().split()[1])
    headers = {name.lower(): value for name, value in parse_headers(lines).items()}
    return Response(status, headers, lines.read())


def constant_headers(response: Response) -> dict[str, str]:
    """Return the headers that are the same in a response and its replay."""
    return {name: value for name, value in response.headers.items() if name not in VARYING_HEADERS}
