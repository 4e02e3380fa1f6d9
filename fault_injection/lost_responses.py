"""A response is lost after its write is applied: from the database to the API, or to the client.

The API retries a statement whose outcome is unknown, and detects that its first attempt was
applied. A client retries with the same Idempotency-Key. In both cases the write is applied once,
and the client gets the response of one write.
"""

from __future__ import annotations

import itertools
import uuid
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
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
    body: dict[str, object] | None
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
    "PUT of a new task": Write(
        *("PUT", "/{key}", {"title": "Oats"}, {"If-None-Match": "*"}),
        *(201, ("Oats", False, False), 0),
    ),
    "PUT": Write("PUT", "/{id}", {"title": "Rye"}, IF_MATCH, 200, ("Rye", False, False)),
    "PATCH": Write("PATCH", "/{id}", {"title": "Rye"}, IF_MATCH, 200, ("Rye", False, False)),
    "complete": Write("PATCH", "/{id}/complete", None, IF_MATCH, 200, ("Milk", True, False)),
    "DELETE": Write("DELETE", "/{id}", None, IF_MATCH, 204, ("Milk", False, True)),
    "DELETE without If-Match": Write("DELETE", "/{id}", None, {}, 204, ("Milk", False, True)),
    "restore": Write("POST", "/{id}/restore", None, {}, 200, ("Milk", False, False), 2),
}


def run(*, short: bool) -> None:
    times = 30 if short else 1000
    with postgresql() as server:
        lose_responses_of_database(server, times)
        lose_responses_of_api(server, times)


def lose_responses_of_database(server: Postgres, times: int) -> None:
    counts = dict.fromkeys(WRITES, 0)
    with (
        Proxy(server.address, is_complete_postgresql_response) as proxy,
        serving(url_through_proxy(server.url(), proxy)) as api,
        Client(api.address) as client,
    ):
        for _, name in zip(range(times), itertools.cycle(WRITES), strict=False):
            lose_response_of_database(server, proxy, client, name)
            counts[name] += 1
        assert len(proxy.lost) == times
    print_figures(
        responses_lost_between_database_and_API=times,
        **counts,
        applied_twice_or_with_a_wrong_response=0,
    )


def lose_response_of_database(server: Postgres, proxy: Proxy, client: Client, name: str) -> None:
    write = WRITES[name]
    user, key = uuid.uuid4(), uuid.uuid4()
    tasks = f"/api/{user}/tasks"
    task: dict[str, object] = {}
    if write.changes:
        task = client.request("POST", tasks, {"title": "Milk"}).json
    if write.changes == 2:
        assert client.request("DELETE", f"{tasks}/{task['id']}").status == 204
    path = tasks + write.path.format(key=key, **task)
    current = etag(write.changes)  # each change takes the next number
    headers = {
        header: value.format(key=key, etag=current) for header, value in write.headers.items()
    }

    # The user id of the statement, in binary and in two forms of text.
    proxy.lose_response(user.bytes, user.hex.encode(), str(user).encode())
    response = client.request(write.method, path, write.body, headers)

    assert not proxy.armed, f"{name}: no response was lost"
    assert response.status == write.status, f"{name}: {response}"
    with server.connect() as connection:
        rows = connection.execute(
            "SELECT title, completed, deleted_at IS NOT NULL, tasks.revision, users.revision"
            " FROM tasks JOIN users ON users.id = user_id WHERE user_id = %s",
            [user],
        ).fetchall()
    revision = write.changes + 1
    assert rows == [(*write.expected_row, revision, revision)], f"{name}: {rows}"
    if response.status != 204:
        assert response.headers["etag"] == etag(revision), f"{name}: {response.headers}"
        body = response.json
        columns = (body["title"], body["completed"], False, body["revision"])
        assert columns == rows[0][:4], f"{name}: {response}"


def lose_responses_of_api(server: Postgres, times: int) -> None:
    with (
        serving(server.url()) as api,
        Proxy(api.address, is_complete_http_response) as proxy,
        Client(proxy.address) as client,
    ):
        for _ in range(times):
            user, key = uuid.uuid4(), str(uuid.uuid4())
            request = (
                *("POST", f"/api/{user}/tasks"),
                *({"title": "Buy oat milk"}, {"Idempotency-Key": key}),
            )
            proxy.lose_response(key.encode())
            try:
                response = client.request(*request)
            except (OSError, HTTPException):
                pass
            else:
                raise AssertionError(f"The response was not lost: {response}")

            response = client.request(*request)

            first = parse_response(proxy.lost[-1])
            assert (response.status, response.body) == (first.status, first.body), (
                f"{first}: {response}"
            )
            assert constant_headers(response) == constant_headers(first), (
                f"{first.headers}: {response.headers}"
            )
            assert "idempotent-replayed" not in first.headers
            assert response.headers.get("idempotent-replayed") == "true", response.headers
            with server.connect() as connection:
                rows = connection.execute(
                    "SELECT id::text FROM tasks WHERE user_id = %s", [user]
                ).fetchall()
            assert rows == [(response.json["id"],)], rows
    print_figures(responses_lost_between_API_and_client=times, applied_twice=0, different_replays=0)


def parse_response(received: bytes) -> Response:
    lines = BytesIO(received)
    status = int(lines.readline().split()[1])
    headers = {name.lower(): value for name, value in parse_headers(lines).items()}
    return Response(status, headers, lines.read())


def constant_headers(response: Response) -> dict[str, str]:
    """Return the headers that are the same in a response and its replay."""
    return {name: value for name, value in response.headers.items() if name not in VARYING_HEADERS}
