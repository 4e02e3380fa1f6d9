"""Connections: few, for as long as there is time, and again soon after the database was away."""

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


def assert_unavailable(answer):
    assert answer.status_code == 503, answer.text
    assert answer.json["type"] == "/problems/unavailable"
    assert answer.headers["Retry-After"] == "1"


def in_time():
    """A deadline that no test here reaches."""
    return time.monotonic() + 60


def test_a_request_is_refused_when_no_other_finishes_within_the_stall_timeout():
    limiter = AdmissionLimiter(2, Metrics(), stall_timeout=0.2)
    began = time.monotonic()
    limiter.acquire(in_time())
    limiter.acquire(in_time())

    with pytest.raises(TooManyRequests):
        limiter.acquire(in_time())

    assert 0.2 <= time.monotonic() - began < 10


def test_requests_are_refused_at_once_while_the_database_is_stalled():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=0.5)
    limiter.acquire(in_time())
    with pytest.raises(TooManyRequests):
        limiter.acquire(in_time())
    began = time.monotonic()

    for _ in range(100):
        with pytest.raises(TooManyRequests):
            limiter.acquire(in_time())

    assert time.monotonic() - began < 25, "Half of what they take if each waits."


def test_after_a_failure_the_retry_timeout_applies_until_a_request_succeeds():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=0, retry_timeout=60)
    limiter.acquire(in_time())
    limiter.release(succeeded=False)
    limiter.acquire(in_time())

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(limiter.acquire, in_time())
        time.sleep(0.1)
        assert not waiting.done()
        limiter.release(succeeded=True)
        waiting.result(timeout=30)
    with pytest.raises(TooManyRequests):
        limiter.acquire(in_time())


def test_a_request_that_waits_gets_the_slot_when_another_finishes():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=30)
    limiter.acquire(in_time())
    threading.Timer(0.1, limiter.release, kwargs={"succeeded": True}).start()

    limiter.acquire(in_time())

    assert limiter.free_slots == 0


def test_requests_wait_again_as_soon_as_one_has_finished_after_a_stall():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=1)
    limiter.acquire(in_time())
    with pytest.raises(TooManyRequests):
        limiter.acquire(in_time())
    limiter.release(succeeded=True)
    limiter.acquire(in_time())
    threading.Timer(0.05, limiter.release, kwargs={"succeeded": True}).start()

    limiter.acquire(in_time())

    assert limiter.free_slots == 0


def test_a_request_waits_no_longer_than_its_deadline():
    limiter = AdmissionLimiter(1, Metrics(), stall_timeout=60)
    limiter.acquire(in_time())
    began = time.monotonic()

    with pytest.raises(TooManyRequests):
        limiter.acquire(began + 0.1)

    assert time.monotonic() - began < 30


def test_requests_wait_while_others_finish():
    limiter = AdmissionLimiter(3, Metrics(), stall_timeout=30)
    busy = []

    def use(_):
        limiter.acquire(in_time())
        busy.append(3 - limiter.free_slots)
        time.sleep(0.001)
        limiter.release(succeeded=True)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(200)))

    assert max(busy) <= 3
    assert limiter.free_slots == 3


def test_a_worker_keeps_one_thread_for_what_needs_no_database(make_app, tasks_url):
    app = make_app(WEB_THREADS="3", REQUEST_TIMEOUT="30")
    held = app.services.pool
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


def proxied_url(proxy):
    host, port = proxy.address
    return f"postgresql://postgres@{host}:{port}/todo"


@pytest.fixture
def behind(proxy, make_app):
    """The application behind the proxy, its settings as given; the proxy is well at the end."""
    yield lambda **changes: make_app(DATABASE_URL=proxied_url(proxy), **changes)
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
    proxy.accept_and_reset()
    proxy.reset_connections()
    connects = proxy.connects
    threading.Timer(2, proxy.forward).start()

    answer = client.get(tasks_url)

    assert answer.status_code == 200
    assert proxy.connects - connects < 20


@pytest.fixture
def impatient(behind, proxy, make_settings):
    """An application behind the proxy that waits for a connection for 0.2 s of an outage."""
    app = behind(REQUEST_TIMEOUT="2")
    settings = make_settings(DATABASE_URL=proxied_url(proxy), REQUEST_TIMEOUT="2")
    with closing(Pool(settings, Metrics(), cold_start=0.2)) as pool:
        app.services = replace(app.services, pool=pool)
        yield app


def test_an_outage_is_refused_at_once_until_it_is_over(impatient, proxy, tasks_url):
    client = impatient.test_client()
    assert client.get(tasks_url).status_code == 200
    proxy.refuse()
    proxy.reset_connections()
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
    circuit_breaker = CircuitBreaker(Metrics())
    circuit_breaker.give_up()

    def attempt():
        raise psycopg.OperationalError("refused")

    with pytest.raises(psycopg.OperationalError, match="refused"):
        circuit_breaker.connect(attempt)


def test_no_time_is_no_connection(app):
    with (
        pytest.raises(PoolTimeout),
        app.services.pool.connection(deadline=time.monotonic() - 1),
    ):
        pass


def eventually(come):
    deadline = time.monotonic() + 30
    while not come():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
