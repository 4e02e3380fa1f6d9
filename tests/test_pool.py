"""Connections: few, for as long as there is time, and again soon after the database was away."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from psycopg_pool import PoolTimeout, TooManyRequests

from faults.proxy import Proxy
from faults.servers import postgresql
from todo_api import pool
from todo_api.pool import Gate, Outage


def assert_unavailable(answer):
    assert answer.status_code == 503, answer.text
    assert answer.json["type"] == "/problems/unavailable"
    assert answer.headers["Retry-After"] == "1"


def test_who_finds_no_place_is_refused_soon():
    gate = Gate(2)
    gate.enter()
    gate.enter()
    began = time.monotonic()

    with pytest.raises(TooManyRequests):
        gate.enter()

    assert time.monotonic() - began < pool.PATIENCE + 1


def test_while_nobody_is_served_who_finds_no_place_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 30)
    gate = Gate(1)
    gate.enter()
    gate.leave(served=False)
    gate._moved_at -= 31
    gate.enter()
    began = time.monotonic()

    with pytest.raises(TooManyRequests):
        gate.enter()

    assert time.monotonic() - began < 10


def test_who_finds_places_taken_in_quick_turn_waits(monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 30)
    gate = Gate(3)
    at_once = []

    def use(_):
        gate.enter()
        at_once.append(3 - gate._free)
        time.sleep(0.001)
        gate.leave(served=True)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(200)))

    assert max(at_once) <= 3
    assert gate._free == 3


def test_a_worker_keeps_one_thread_for_what_needs_no_database(make_app, tasks_url):
    app = make_app(WEB_THREADS="3", REQUEST_TIMEOUT="30")
    held = app.extensions["pool"]
    deadline = time.monotonic() + 30

    with held.connection(deadline), held.connection(deadline):
        refused = app.test_client().get(tasks_url)
        alive = app.test_client().get("/livez")

    assert_unavailable(refused)
    assert alive.status_code == 200
    assert app.test_client().get(tasks_url).status_code == 200


@pytest.fixture
def silent():
    """Where connects are taken, and nothing is ever answered."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        yield f"postgresql://todo@127.0.0.1:{listener.getsockname()[1]}/todo"


def test_a_database_that_never_answers_costs_no_more_than_the_time_there_is(
    make_app, tasks_url, silent
):
    client = make_app(DATABASE_URL=silent, REQUEST_TIMEOUT="0.5").test_client()
    began = time.monotonic()

    answer = client.get(tasks_url)

    assert_unavailable(answer)
    assert time.monotonic() - began < 5


@pytest.fixture(scope="module")
def proxy():
    """What stands in front of a server of its own, reached by TCP."""
    with postgresql() as server, Proxy(server.address) as opened:
        yield opened


@pytest.fixture
def behind(proxy, make_app):
    """The application behind the proxy, its settings as given; the proxy is well at the end."""
    host, port = proxy.address

    def make(**changes):
        return make_app(DATABASE_URL=f"postgresql://postgres@{host}:{port}/todo", **changes)

    yield make
    proxy.forward()


def test_a_database_that_falls_silent_costs_no_more_than_the_time_there_is(
    behind, proxy, tasks_url
):
    client = behind(REQUEST_TIMEOUT="1").test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.hold()
    began = time.monotonic()

    answer = client.get(tasks_url)
    took = time.monotonic() - began
    proxy.forward()

    assert_unavailable(answer)
    assert took < 5
    eventually(lambda: client.get(tasks_url).status_code == 200)


def test_a_start_of_two_seconds_is_waited_out_with_few_attempts(behind, proxy, tasks_url):
    client = behind(REQUEST_TIMEOUT="30").test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.turn_away()
    proxy.cut()
    connects = proxy.connects
    threading.Timer(2, proxy.forward).start()

    answer = client.get(tasks_url)

    assert answer.status_code == 200
    assert proxy.connects - connects < 20


def test_an_outage_is_refused_at_once_until_it_is_over(behind, proxy, tasks_url, monkeypatch):
    monkeypatch.setattr(pool, "COLD_START", 0.2)
    app = behind(REQUEST_TIMEOUT="2")
    client = app.test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.refuse()
    proxy.cut()
    assert_unavailable(client.get(tasks_url))
    began = time.monotonic()

    refused = [client.get(tasks_url) for _ in range(20)]
    took = time.monotonic() - began
    alive = client.get("/livez")
    proxy.forward()

    for answer in refused:
        assert_unavailable(answer)
    assert took < 20
    assert alive.status_code == 200
    eventually(lambda: client.get(tasks_url).status_code == 200)


def test_an_outage_ends_when_nobody_wants_to_connect_any_more():
    outage = Outage()
    outage.give_up()

    def attempt():
        raise psycopg.OperationalError("refused")

    with pytest.raises(psycopg.OperationalError, match="refused"):
        outage.connect(attempt)


def test_no_time_is_no_connection(app):
    with (
        pytest.raises(PoolTimeout),
        app.extensions["pool"].connection(deadline=time.monotonic() - 1),
    ):
        pass


def eventually(come):
    deadline = time.monotonic() + 30
    while not come():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
