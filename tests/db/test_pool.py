"""Connections to the database: the number of slots, timeouts, and recovery after an outage."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest
from psycopg_pool import PoolTimeout, TooManyRequests

from fault_injection.proxy import Proxy
from fault_injection.servers import postgresql
from todo_api.db.admission import AdmissionLimiter
from todo_api.db.circuit_breaker import CircuitBreaker
from todo_api.db.pool import Pool
from todo_api.metrics import Metrics


def assert_unavailable(response):
    assert response.status_code == 503, response.text
    assert response.json["type"] == "/problems/unavailable"
    assert response.headers["Retry-After"] == "1"


def distant_deadline():
    """Return a deadline that no test of this module reaches."""
    return time.monotonic() + 60


def test_request_is_refused_when_no_other_finishes_within_the_stall_timeout():
    limiter = AdmissionLimiter(2, Metrics(), stall_timeout=0.2)
    started_at = time.monotonic()
    limiter.acquire(distant_deadline())
    limiter.acquire(distant_deadline())

    with pytest.raises(TooManyRequests):
        limiter.acquire(distant_deadline())

    assert 0.2 <= time.monotonic() - started_at < 10


def test_requests_are_refused_at_once_while_the_database_is_stalled():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=0.5)
    limiter.acquire(distant_deadline())
    with pytest.raises(TooManyRequests):
        limiter.acquire(distant_deadline())
    started_at = time.monotonic()

    for _ in range(100):
        with pytest.raises(TooManyRequests):
            limiter.acquire(distant_deadline())

    assert time.monotonic() - started_at < 25, (
        "the requests waited instead of being refused at once"
    )


def test_stall_timeout_after_failure_applies_until_a_request_succeeds():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=0, stall_timeout_after_failure=60)
    limiter.acquire(distant_deadline())
    limiter.release(succeeded=False)
    limiter.acquire(distant_deadline())

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(limiter.acquire, distant_deadline())
        time.sleep(0.1)
        assert not waiting.done()
        limiter.release(succeeded=True)
        waiting.result(timeout=30)
    with pytest.raises(TooManyRequests):
        limiter.acquire(distant_deadline())


def test_waiting_request_gets_the_slot_when_another_finishes():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=30)
    limiter.acquire(distant_deadline())
    threading.Timer(0.1, limiter.release, kwargs={"succeeded": True}).start()

    limiter.acquire(distant_deadline())

    assert limiter.free_slots == 0


def test_requests_wait_again_as_soon_as_one_has_finished_after_a_stall():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=1)
    limiter.acquire(distant_deadline())
    with pytest.raises(TooManyRequests):
        limiter.acquire(distant_deadline())
    limiter.release(succeeded=True)
    limiter.acquire(distant_deadline())
    threading.Timer(0.05, limiter.release, kwargs={"succeeded": True}).start()

    limiter.acquire(distant_deadline())

    assert limiter.free_slots == 0


def test_request_waits_no_longer_than_its_deadline():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=60)
    limiter.acquire(distant_deadline())
    started_at = time.monotonic()

    with pytest.raises(TooManyRequests):
        limiter.acquire(started_at + 0.1)

    assert time.monotonic() - started_at < 30


def test_requests_wait_while_others_finish():
    limiter = AdmissionLimiter(3, Metrics(), stall_timeout=30)
    busy = []

    def use(_):
        limiter.acquire(distant_deadline())
        busy.append(3 - limiter.free_slots)
        time.sleep(0.001)
        limiter.release(succeeded=True)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(200)))

    assert max(busy) <= 3
    assert limiter.free_slots == 3


def test_one_thread_is_free_for_requests_that_need_no_database(make_app, tasks_url):
    app = make_app(WEB_THREADS="3", REQUEST_TIMEOUT="30")
    pool = app.services.pool
    deadline = time.monotonic() + 30

    with pool.connection(deadline), pool.connection(deadline):
        refused = app.test_client().get(tasks_url)
        livez = app.test_client().get("/livez")

    assert_unavailable(refused)
    assert livez.status_code == 200
    assert app.test_client().get(tasks_url).status_code == 200


@pytest.fixture
def silent_url():
    """The URL of a server that accepts connections and never sends a byte."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        yield f"postgresql://todo@127.0.0.1:{listener.getsockname()[1]}/todo"


def test_request_timeout_applies_to_a_database_that_accepts_but_never_responds(
    make_app, tasks_url, silent_url
):
    client = make_app(DATABASE_URL=silent_url, REQUEST_TIMEOUT="0.5").test_client()
    started_at = time.monotonic()

    response = client.get(tasks_url)

    assert_unavailable(response)
    assert time.monotonic() - started_at < 5


@pytest.fixture(scope="module")
def proxy():
    """A TCP proxy in front of a PostgreSQL server."""
    with postgresql() as server, Proxy(server.address) as running_proxy:
        yield running_proxy


def proxied_url(proxy):
    host, port = proxy.address
    return f"postgresql://postgres@{host}:{port}/todo"


@pytest.fixture
def make_proxied_app(proxy, make_app):
    """Create an application that connects through the proxy; reset the proxy at the end."""
    yield lambda **changes: make_app(DATABASE_URL=proxied_url(proxy), **changes)
    proxy.forward()


def test_request_timeout_applies_to_a_database_that_stops_responding(
    make_proxied_app, proxy, tasks_url
):
    client = make_proxied_app(REQUEST_TIMEOUT="1").test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.hold()
    started_at = time.monotonic()

    response = client.get(tasks_url)
    duration = time.monotonic() - started_at
    proxy.forward()

    assert_unavailable(response)
    assert duration < 5
    wait_until(lambda: client.get(tasks_url).status_code == 200)


def test_request_waits_two_seconds_for_the_database_with_few_connection_attempts(
    make_proxied_app, proxy, tasks_url
):
    client = make_proxied_app(REQUEST_TIMEOUT="30").test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.accept_and_reset()
    proxy.reset_connections()
    connects = proxy.connects
    threading.Timer(2, proxy.forward).start()

    response = client.get(tasks_url)

    assert response.status_code == 200
    assert proxy.connects - connects < 20


@pytest.fixture
def proxied_app(make_proxied_app, proxy, make_settings):
    """An application behind a proxy. It refuses requests 0.2 s after an outage of the proxy."""
    app = make_proxied_app(REQUEST_TIMEOUT="2")
    settings = make_settings(DATABASE_URL=proxied_url(proxy), REQUEST_TIMEOUT="2")
    with closing(Pool(settings, Metrics(), cold_start=0.2)) as pool:
        app.services = replace(app.services, pool=pool)
        yield app


def test_requests_are_refused_at_once_during_an_outage(proxied_app, proxy, tasks_url):
    client = proxied_app.test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.refuse()
    proxy.reset_connections()
    assert_unavailable(client.get(tasks_url))
    started_at = time.monotonic()

    refused = [client.get(tasks_url) for _ in range(20)]
    duration = time.monotonic() - started_at
    livez = client.get("/livez")
    proxy.forward()

    for response in refused:
        assert_unavailable(response)
    assert duration < 20
    assert livez.status_code == 200
    wait_until(lambda: client.get(tasks_url).status_code == 200)


def test_failed_attempt_is_not_repeated_after_give_up():
    circuit_breaker = CircuitBreaker(Metrics())
    circuit_breaker.give_up()

    def attempt():
        raise psycopg.OperationalError("refused")

    with pytest.raises(psycopg.OperationalError, match="refused"):
        circuit_breaker.connect(attempt)


def test_past_deadline_gets_no_connection(app):
    with (
        pytest.raises(PoolTimeout),
        app.services.pool.connection(deadline=time.monotonic() - 1),
    ):
        pass


def wait_until(condition):
    """Wait until the condition is true."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)
