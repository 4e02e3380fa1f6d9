"""A request costs one network round trip to the database, row-level security included."""

from __future__ import annotations

import selectors
import socket
import threading
import uuid
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import func, literal_column, select

from todo_api.db.statement import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.pooled

SYNC = b"S\x00\x00\x00\x04"

# After this silence, a side has ended its turn.
SILENCE = 0.05  # seconds

IDENTITY = compiled(
    select(
        literal_column("current_user"),
        func.current_setting(literal_column("'todo.user_id'")),
        func.row_security_active(literal_column("'tasks'")),
    )
)


class Proxy:
    """A proxy in front of PostgreSQL that counts round trips.

    The proxy delays responses until both sides are silent, so that a client that does not wait for
    them continues to send. A request and its response count once, in any number of segments.
    Requests without a response are not counted.
    """

    def __init__(self, upstream: Callable[[], socket.socket]) -> None:
        self.round_trips = 0
        self.sent = b""
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = self._upstream()
                self._sockets += [client, server]
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        has_request, response = False, b""
        with suppress(OSError), client, server, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                sides = {key.fileobj for key, _ in ready.select(SILENCE if response else None)}
                for side in sides:
                    data = side.recv(65536)
                    if not data:
                        return
                    if side is server:
                        response += data
                    else:
                        has_request = True
                        self.sent += data
                        server.sendall(data)
                if not sides:
                    self.round_trips += has_request
                    has_request = False
                    client.sendall(response)
                    response = b""


@pytest.fixture(scope="module")
def proxy(make_settings):
    """A proxy in front of PostgreSQL or, with a pooler, in front of the pooler."""
    with psycopg.connect(make_settings().database_url) as connection:
        host, port = connection.info.host, connection.info.port

    def upstream() -> socket.socket:
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{host}/.s.PGSQL.{port}")
        return connection

    with closing(Proxy(upstream)) as running_proxy:
        yield running_proxy


@pytest.fixture
def count_round_trips(proxy):
    """Count the round trips of a block of code."""

    @contextmanager
    def count():
        counts = []
        before = proxy.round_trips
        yield counts
        counts.append(proxy.round_trips - before)

    return count


@pytest.fixture(scope="module")
def proxied_url(make_settings, proxy):
    """The URL of the database through the proxy, unencrypted so that the proxy can read it."""
    with psycopg.connect(make_settings().database_url) as connection:
        info = connection.info
        login = f"{info.user}:{info.password}" if info.password else info.user
        return (
            f"postgresql://{login}@127.0.0.1:{proxy.port}/{info.dbname}"
            "?sslmode=disable&gssencmode=disable"
        )


@pytest.fixture
def client(shared_app, proxied_url):
    return shared_app(DATABASE_URL=proxied_url).test_client()


def test_proxy_counts_the_round_trips_of_a_transaction(proxied_url, count_round_trips):
    with (
        psycopg.connect(proxied_url) as connection,
        count_round_trips() as counts,
        connection.transaction(),
    ):
        connection.execute("SELECT 1")

    assert counts == [3]  # BEGIN, SELECT, COMMIT


def test_response_in_many_segments_is_one_round_trip(proxied_url, count_round_trips):
    with psycopg.connect(proxied_url, autocommit=True) as connection, count_round_trips() as counts:
        rows = connection.execute(
            "SELECT repeat('x', 100000), pg_sleep(0.1) FROM generate_series(1, 3)"
        ).fetchall()

    assert len(rows) == 3
    assert counts == [1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/{id}", None, 200),
        ("GET", "", None, 200),
        ("GET", "?completed=false&limit=1", None, 200),
        ("GET", "/count", None, 200),
        ("GET", "/count?priority=none,high", None, 200),
        ("POST", "", {"title": "Buy oats"}, 201),
        ("POST", "", {"title": "Buy oat milk", "id": "{id}"}, 201),
        ("POST", "", {"title": "Buy oats", "id": "{id}"}, 409),
        ("PUT", "/{id}", {"title": "Buy oats"}, 200),
        ("PATCH", "/{id}", {"title": "Buy rice"}, 200),
        ("PATCH", "/{id}", {}, 200),
        ("PATCH", "/{id}", {"title": "Buy oat milk"}, 200),
        ("PATCH", "/{id}", {"title": "Buy rice", "revision": 1}, 412),
        ("PATCH", "/{id}/complete", None, 200),
        ("POST", "/{id}/restore", None, 200),
        ("DELETE", "/{id}", None, 204),
        ("DELETE", "/00000000-0000-0000-0000-000000000000", None, 404),
        ("GET", "/../changes?since=0", None, 200),
        ("PUT", "/{id}/labels/errand", None, 200),
        ("DELETE", "/{id}/labels/errand", None, 200),
        ("GET", "/../labels", None, 200),
        ("POST", "/../labels/rename", {"from": "errand", "to": "shop"}, 200),
        ("GET", "/../trash", None, 200),
        ("DELETE", "/../trash", None, 204),
    ],
)
def test_request_needs_one_round_trip(
    client, tasks_url, count_round_trips, method, path, body, status
):
    warm_task, task = (
        client.post(tasks_url, json={"title": "Buy oat milk"}).json for _ in range(2)
    )

    def send(item):
        url = (tasks_url + path.format_map(item)).replace("/tasks/..", "")
        members = body and {
            name: value.format_map(item) if name == "id" else value for name, value in body.items()
        }
        return client.open(url, method=method, json=members)

    send(warm_task)

    with count_round_trips() as counts:
        response = send(task)

    assert response.status_code == status
    assert counts == [1]


ALL_DAY = {"due_date": "2025-11-20"}
FLOATING = ALL_DAY | {"due_time": "12:00"}
ZONED = FLOATING | {"time_zone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("due", "change", "round_trips"),
    [
        ({}, {"due_date": "2025-11-21"}, 1),
        ({}, ZONED, 1),
        (ALL_DAY, {"due_date": "2025-11-21"}, 1),
        (ALL_DAY, {"due_time": "13:00"}, 1),
        (FLOATING, {"due_date": "2025-11-21"}, 1),
        (FLOATING, {"due_time": None}, 1),
        # The moment depends on the stored time and time zone: they must be read first.
        (FLOATING, {"time_zone": "Europe/Berlin"}, 2),
        (ZONED, {"due_date": "2025-11-21"}, 2),
        (ZONED, {"due_time": "13:00"}, 2),
        (ZONED, {"time_zone": "Asia/Tokyo"}, 2),
        (ZONED, {"due_date": "2025-11-21", "due_time": "13:00"}, 2),
        (ZONED, {"due_date": "2025-11-20"}, 1),  # the stored date
        (ZONED, {"time_zone": None}, 1),
        (ZONED, ALL_DAY | {"due_time": None, "time_zone": None}, 1),
        (ZONED, ZONED | {"due_date": "2025-11-21"}, 1),
        (ZONED, {"title": "Buy oats", "completed": True}, 1),
    ],
)
def test_change_of_a_due_date_needs_at_most_two_round_trips(
    client, tasks_url, count_round_trips, due, change, round_trips
):
    warm_url, url = (
        client.post(tasks_url, json={"title": "Buy oat milk", **due}).headers["Location"]
        for _ in range(2)
    )
    client.patch(warm_url, json=change)

    with count_round_trips() as counts:
        response = client.patch(url, json=change)

    assert response.status_code == 200
    assert counts == [round_trips]


@pytest.mark.parametrize("query", ["due=today", "due=overdue", "started=true&sort=due"])
@pytest.mark.parametrize("path", ["", "/count"])
def test_list_by_day_needs_a_second_round_trip_only_after_a_change_of_the_zone(
    client, shared_app, tasks_url, user_id, count_round_trips, path, query
):
    """The other worker has changed the zone that this one remembers."""
    url = f"{tasks_url}{path}?{query if not path else query.partition('&')[0]}"
    client.post(tasks_url, json={"title": "Buy oat milk", "due_date": "2025-11-20"})
    client.get(url)
    other_worker = shared_app().test_client()
    other_worker.patch(f"/api/{user_id}", json={"time_zone": "Europe/Berlin"})

    trips = []
    for _ in range(2):
        with count_round_trips() as counts:
            client.get(url)
        trips += counts

    assert trips == [2, 1]


@pytest.mark.parametrize(
    ("method", "body"),
    [("GET", None), ("PATCH", {"time_zone": "Asia/Tokyo"}), ("PATCH", {"time_zone": "UTC"})],
)
def test_request_for_a_user_needs_one_round_trip(client, user_id, count_round_trips, method, body):
    client.open(f"/api/{uuid.uuid4()}", method=method, json=body)

    with count_round_trips() as counts:
        response = client.open(f"/api/{user_id}", method=method, json=body)

    assert response.status_code == 200
    assert counts == [1]


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/restore")])
def test_request_for_a_deleted_task_needs_one_round_trip(
    client, tasks_url, count_round_trips, method, path
):
    warm_url, url = (
        client.post(tasks_url, json={"title": "Buy oat milk"}).headers["Location"] for _ in range(2)
    )
    for each in (warm_url, url):
        client.delete(each)
    client.open(warm_url + path, method=method)

    with count_round_trips() as counts:
        response = client.open(url + path, method=method)

    assert response.status_code == (204 if method == "DELETE" else 200)
    assert counts == [1]


@pytest.mark.parametrize("replays", [False, True])
def test_creation_with_a_key_needs_one_round_trip(client, tasks_url, count_round_trips, replays):
    def create(key):
        return client.post(
            tasks_url, json={"title": "Buy oat milk"}, headers={"Idempotency-Key": key}
        )

    create("warm")

    with count_round_trips() as counts:
        response = create("warm" if replays else "new")

    assert response.status_code == 201
    assert ("Idempotent-Replayed" in response.headers) is replays
    assert counts == [1]


def test_last_message_of_a_request_is_sync(client, tasks_url, proxy):
    """A message after the Sync would begin a transaction that a pooler keeps open."""
    client.get(tasks_url)

    response = client.post(tasks_url, json={"title": "Buy oat milk"})

    assert response.status_code == 201
    assert proxy.sent.endswith(SYNC)


def test_row_level_security_applies_within_the_round_trip(
    open_database, proxied_url, count_round_trips
):
    owner = uuid.uuid4()
    database = open_database(DATABASE_URL=proxied_url)
    database.one(owner, IDENTITY)

    with count_round_trips() as counts:
        row = database.one(owner, IDENTITY)

    assert row == ("todo_app", str(owner), True)
    assert counts == [1]
