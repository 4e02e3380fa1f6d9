"""An answer is lost after what was asked for is done: between database and API, and to the client.

The API repeats what it does not know the outcome of, and has to recognise its own first attempt;
a client repeats with the same Idempotency-Key. Either way it is done once, and answered as once.
"""

from __future__ import annotations

import itertools
import uuid
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Answer, Client
from fault_injection.proxy import Proxy, http_answered, postgresql_answered
from fault_injection.servers import postgresql, serving, url_through_proxy
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from fault_injection.servers import Postgres

# What differs between an answer and its replay: when, of which request, and that it is one.
OF_ITS_OWN = {"date", "x-request-id", "idempotent-replayed"}


class Write(NamedTuple):
    """A request to a task that has been through `changes`, and what it has to come to."""

    method: str
    path: str
    body: dict[str, object] | None
    headers: dict[str, str]
    status: int
    # The title, whether it is completed, whether it is in the trash.
    left: tuple[str, bool, bool]
    changes: int = 1


OF_REVISION = {"If-Match": "{etag}"}
WRITES = {
    "POST": Write("POST", "", {"title": "Oats"}, {}, 201, ("Oats", False, False), 0),
    "POST with a key": Write(
        *("POST", "", {"title": "Oats"}, {"Idempotency-Key": "{key}"}),
        *(201, ("Oats", False, False), 0),
    ),
    "PUT that creates": Write(
        *("PUT", "/{key}", {"title": "Oats"}, {"If-None-Match": "*"}),
        *(201, ("Oats", False, False), 0),
    ),
    "PUT": Write("PUT", "/{id}", {"title": "Rye"}, OF_REVISION, 200, ("Rye", False, False)),
    "PATCH": Write("PATCH", "/{id}", {"title": "Rye"}, OF_REVISION, 200, ("Rye", False, False)),
    "complete": Write("PATCH", "/{id}/complete", None, OF_REVISION, 200, ("Milk", True, False)),
    "DELETE": Write("DELETE", "/{id}", None, OF_REVISION, 204, ("Milk", False, True)),
    "DELETE without If-Match": Write("DELETE", "/{id}", None, {}, 204, ("Milk", False, True)),
    "restore": Write("POST", "/{id}/restore", None, {}, 200, ("Milk", False, False), 2),
}


def run(*, short: bool) -> None:
    times = 30 if short else 1000
    with postgresql() as server:
        lose_the_databases(server, times)
        lose_the_servers(server, times)


def lose_the_databases(server: Postgres, times: int) -> None:
    done = dict.fromkeys(WRITES, 0)
    with (
        Proxy(server.address, postgresql_answered) as proxy,
        serving(url_through_proxy(server.url(), proxy)) as api,
        Client(api.address) as client,
    ):
        for _, name in zip(range(times), itertools.cycle(WRITES), strict=False):
            lose_one(server, proxy, client, name)
            done[name] += 1
        assert len(proxy.lost) == times
    print_figures(answers_lost_between_database_and_API=times, **done, done_twice_or_told_wrong=0)


def lose_one(server: Postgres, proxy: Proxy, client: Client, name: str) -> None:
    write = WRITES[name]
    user, key = uuid.uuid4(), uuid.uuid4()
    tasks = f"/api/{user}/tasks"
    told: dict[str, object] = {}
    if write.changes:
        told = client.request("POST", tasks, {"title": "Milk"}).json
    if write.changes == 2:
        assert client.request("DELETE", f"{tasks}/{told['id']}").status == 204
    path = tasks + write.path.format(key=key, **told)
    known = etag(write.changes)  # each change takes the next number
    headers = {each: value.format(key=key, etag=known) for each, value in write.headers.items()}

    # In text and in binary: whatever way it is sent.
    proxy.lose_answer(user.bytes, user.hex.encode(), str(user).encode())
    answer = client.request(write.method, path, write.body, headers)

    assert not proxy.armed, f"{name}: no answer was lost"
    assert answer.status == write.status, f"{name}: {answer}"
    with server.connect() as connection:
        rows = connection.execute(
            "SELECT title, completed, deleted_at IS NOT NULL, tasks.revision, users.revision"
            " FROM tasks JOIN users ON users.id = user_id WHERE user_id = %s",
            [user],
        ).fetchall()
    number = write.changes + 1
    assert rows == [(*write.left, number, number)], f"{name}: {rows}"
    if answer.status != 204:
        assert answer.headers["etag"] == etag(number), f"{name}: {answer.headers}"
        shown = (answer.json["title"], answer.json["completed"], False, answer.json["revision"])
        assert shown == rows[0][:4], f"{name}: {answer}"


def lose_the_servers(server: Postgres, times: int) -> None:
    with (
        serving(server.url()) as api,
        Proxy(api.address, http_answered) as proxy,
        Client(proxy.address) as client,
    ):
        for _ in range(times):
            user, key = uuid.uuid4(), str(uuid.uuid4())
            request = (
                *("POST", f"/api/{user}/tasks"),
                *({"title": "Buy oat milk"}, {"Idempotency-Key": key}),
            )
            proxy.lose_answer(key.encode())
            try:
                answer = client.request(*request)
            except (OSError, HTTPException):
                pass
            else:
                raise AssertionError(f"Not lost: {answer}")

            answer = client.request(*request)

            first = parsed(proxy.lost[-1])
            assert (answer.status, answer.body) == (first.status, first.body), f"{first}: {answer}"
            assert lasting(answer) == lasting(first), f"{first.headers}: {answer.headers}"
            assert "idempotent-replayed" not in first.headers
            assert answer.headers.get("idempotent-replayed") == "true", answer.headers
            with server.connect() as connection:
                rows = connection.execute(
                    "SELECT id::text FROM tasks WHERE user_id = %s", [user]
                ).fetchall()
            assert rows == [(answer.json["id"],)], rows
    print_figures(answers_lost_to_the_client=times, done_twice=0, replayed_otherwise=0)


def parsed(answer: bytes) -> Answer:
    lines = BytesIO(answer)
    status = int(lines.readline().split()[1])
    headers = {name.lower(): value for name, value in parse_headers(lines).items()}
    return Answer(status, headers, lines.read())


def lasting(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OF_ITS_OWN}
