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

# How long a side must be silent to be taken to have ended its turn.
SILENCE = 0.05  # seconds

WHO = compiled(
    select(
        literal_column("current_user"),
        func.current_setting(literal_column("'todo.user_id'")),
        func.row_security_active(literal_column("'tasks'")),
    )
)


class Proxy:
    """Stands in front of PostgreSQL and counts flights: turns from a client's sending to an answer.

    Answers are held back until both sides are silent, so that a client that does not wait for them
    goes on sending: it flies once, however its bytes and the answer's are cut into segments. What a
    client sends without ever getting an answer is no flight.
    """

    def __init__(self, upstream: Callable[[], socket.socket]) -> None:
        self.flights = 0
        self.sent = b""
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for opened in self._open:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = self._upstream()
                self._open += [client, server]
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        asked, held = False, b""
        with suppress(OSError), client, server, selectors.DefaultSelector() as ready:
            ready.register(client, selectors.EVENT_READ)
            ready.register(server, selectors.EVENT_READ)
            while True:
                sides = {key.fileobj for key, _ in ready.select(SILENCE if held else None)}
                for side in sides:
                    data = side.recv(65536)
                    if not data:
                        return
                    if side is server:
                        held += data
                    else:
                        asked = True
                        self.sent += data
                        server.sendall(data)
                if not sides:
                    self.flights += asked
                    asked = False
                    client.sendall(held)
                    held = b""


@pytest.fixture(scope="module")
def proxy(make_settings):
    """In front of PostgreSQL, or of the pooler that stands between."""
    with psycopg.connect(make_settings().database_url) as connection:
        host, port = connection.info.host, connection.info.port

    def upstream() -> socket.socket:
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(f"{host}/.s.PGSQL.{port}")
        return opened

    with closing(Proxy(upstream)) as opened:
        yield opened


@pytest.fixture
def flights(proxy):
    """Count the flights of a block of code."""

    @contextmanager
    def count():
        counted = []
        before = proxy.flights
        yield counted
        counted.append(proxy.flights - before)

    return count


@pytest.fixture(scope="module")
def proxied_url(make_settings, proxy):
    """The worker's database, reached through the proxy, which can read what is sent."""
    with psycopg.connect(make_settings().database_url) as connection:
        info = connection.info
        login = f"{info.user}:{info.password}" if info.password else info.user
        return (
            f"postgresql://{login}@127.0.0.1:{proxy.port}/{info.dbname}"
            "?sslmode=disable&gssencmode=disable"
        )


@pytest.fixture
def client(make_app, proxied_url):
    return make_app(DATABASE_URL=proxied_url).test_client()


def test_the_proxy_counts_the_turns_of_a_transaction(proxied_url, flights):
    with psycopg.connect(proxied_url) as connection, flights() as counted, connection.transaction():
        connection.execute("SELECT 1")

    assert counted == [3]  # BEGIN, SELECT, COMMIT


def test_an_answer_in_many_segments_is_one_flight(proxied_url, flights):
    with psycopg.connect(proxied_url, autocommit=True) as connection, flights() as counted:
        rows = connection.execute(
            "SELECT repeat('x', 100000), pg_sleep(0.1) FROM generate_series(1, 3)"
        ).fetchall()

    assert len(rows) == 3
    assert counted == [1]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/{id}", None, 200),
        ("GET", "", None, 200),
        ("GET", "?completed=false&limit=1", None, 200),
        ("POST", "", {"title": "Buy oats"}, 201),
        ("PUT", "/{id}", {"title": "Buy oats"}, 200),
        ("PATCH", "/{id}", {"title": "Buy rice"}, 200),
        ("PATCH", "/{id}", {}, 200),
        ("PATCH", "/{id}/complete", None, 200),
        ("DELETE", "/{id}", None, 204),
        ("DELETE", "/{id}", None, 404),
    ],
)
def test_a_warm_request_is_one_flight(client, tasks_url, flights, method, path, body, status):
    warm, asked = (client.post(tasks_url, json={"title": "Buy oat milk"}).json for _ in range(2))
    if status == 404:
        client.delete(f"{tasks_url}/{asked['id']}")
    client.open(tasks_url + path.format_map(warm), method=method, json=body)

    with flights() as counted:
        answer = client.open(tasks_url + path.format_map(asked), method=method, json=body)

    assert answer.status_code == status
    assert counted == [1]


def test_the_last_that_a_request_sends_is_its_sync(client, tasks_url, proxy):
    """To a pooler, whatever follows it begins a transaction, which nothing would end."""
    client.get(tasks_url)

    answer = client.post(tasks_url, json={"title": "Buy oat milk"})

    assert answer.status_code == 201
    assert proxy.sent.endswith(SYNC)


def test_the_one_flight_runs_under_row_level_security(open_database, proxied_url, flights):
    owner = uuid.uuid4()
    database = open_database(DATABASE_URL=proxied_url)
    database.one(owner, WHO)

    with flights() as counted:
        row = database.one(owner, WHO)

    assert row == ("todo_app", str(owner), True)
    assert counted == [1]
