"""gunicorn as in production: malformed requests, slow clients, reloads and stops."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path

import psycopg
import pytest

from fault_injection import invalid_requests
from fault_injection.clients import Client
from fault_injection.invalid_requests import (
    INVALID_REQUESTS,
    SMUGGLED_REQUEST,
    assert_refused,
    chunked,
    exchange,
    get,
    parse_response,
    post,
)
from fault_injection.servers import ROOT, children, environment, free_port, serving, wait_until
from todo_api.server import worker_numbers

pytestmark = pytest.mark.slow

COMPILED = importlib.util.find_spec("gunicorn_h1c") is not None
PARSERS = [
    pytest.param("fast", marks=pytest.mark.skipif(not COMPILED, reason="needs gunicorn_h1c")),
    "python",
]

# These variables make a process measure its coverage. Servers inherit no others.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


@pytest.fixture(scope="module", params=PARSERS)
def api(request, database_url):
    """A server with one worker and one thread: a client that blocks the thread blocks all."""
    arguments = f"--http-parser {request.param}"
    settings = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "1", "LOG_LEVEL": "info"}
    with serving(database_url, GUNICORN_CMD_ARGS=arguments, **settings, **COVERAGE) as server:
        yield server
        log = server.log.read_text()
        assert "Traceback" not in log
        assert "smuggled" not in log
        assert {json.loads(line)["level"] for line in log.splitlines()} <= {"info", "warning"}


@pytest.mark.parametrize("form", INVALID_REQUESTS)
def test_malformed_request_is_refused_once_and_the_connection_is_closed(api, form):
    status, request_bytes = INVALID_REQUESTS[form]

    assert_refused(exchange(api.address, request_bytes + SMUGGLED_REQUEST), status)


def test_response_to_malformed_request_announces_the_close(api):
    response = parse_response(exchange(api.address, get(host=b"")))

    assert response.headers["connection"] == "close"
    assert response.json["type"] == "/problems/malformed"
    assert (
        response.json["detail"]
        == "Send well-formed HTTP/1.1: the server could not parse the request."
    )


def test_too_deeply_nested_json_is_refused(api):
    assert_refused(exchange(api.address, invalid_requests.nested_json_request(10_000)), 400)


def test_error_response_to_head_has_no_body(api):
    received = exchange(api.address, get(line=b"HEAD /livez HTTP/1.1", host=b""))

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body == b""


def test_http_1_0_request_needs_no_host(api):
    response = parse_response(exchange(api.address, get(line=b"GET /livez HTTP/1.0", host=b"")))

    assert response.status == 200


@pytest.mark.parametrize(
    "line", [b"GET http://a/livez HTTP/1.1", b"GET http://a:80/livez HTTP/1.0"]
)
def test_target_in_absolute_form_is_served(api, line):
    response = parse_response(exchange(api.address, get(b"Connection: close", line=line)))

    assert response.status == 200


def test_headers_with_an_underscore_are_dropped(api):
    request_bytes = get(b"X_Request_Id: other", b"X-Request-Id: own", b"Connection: close")

    assert parse_response(exchange(api.address, request_bytes)).headers["x-request-id"] == "own"


@pytest.mark.parametrize(
    "fields",
    [
        [b"Connection: close"],
        [b"Connection: Upgrade, close"],
        [b"Connection: keep-alive, CLOSE"],
        [b"Connection: keep-alive", b"Connection: close"],
    ],
)
def test_connection_option_close_closes_the_connection(api, fields):
    response = parse_response(exchange(api.address, get(*fields)))

    assert response.headers["connection"] == "close"


def test_option_name_that_contains_close_does_not_close_the_connection(api):
    (first, _), (second, second_id) = send_in_turn(
        api.address, get(b"Connection: closed, keep-alive"), NEXT
    )

    assert (first, second, second_id) == (200, 200, "next")


def test_http_1_0_connection_stays_open_with_keep_alive(api):
    line = b"GET /livez HTTP/1.0"

    (first, _), (second, _) = send_in_turn(
        api.address, get(b"Connection: keep-alive", line=line), get(line=line)
    )

    assert (first, second) == (200, 200)


def test_unread_chunks_are_not_parsed_as_a_request(api):
    request_bytes = get(b"Transfer-Encoding: chunked") + b"xyz\r\n" + SMUGGLED_REQUEST

    assert parse_response(exchange(api.address, request_bytes)).status == 200


def send_in_turn(address, *requests: bytes) -> list[tuple[int, str]]:
    """Send requests in turn on one connection; return each response's status and request id."""
    results = []
    with socket.create_connection(address, timeout=30) as connection:
        for request_bytes in requests:
            connection.sendall(request_bytes)
            response = HTTPResponse(connection)
            response.begin()
            response.read()
            results.append((response.status, response.headers["X-Request-Id"]))
    return results


NEXT = get(b"X-Request-Id: next")
UNREAD = SMUGGLED_REQUEST * 400  # about 32 KiB


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (404, get(b"Content-Length: %d" % len(UNREAD), line=b"POST /nothing HTTP/1.1") + UNREAD),
        (415, post(b"Content-Type: text/plain", b"Content-Length: 5", body=b"12345")),
        (415, get(b"Content-Length: %d" % len(UNREAD), line=post().split(b"\r\n")[0]) + UNREAD),
        (201, chunked(b"19\r\n" + invalid_requests.BODY + b"\r\n0\r\nX-Trailer: 1\r\n\r\n")),
        (
            201,
            post(
                b"Expect: 100-continue", invalid_requests.CONTENT_LENGTH, body=invalid_requests.BODY
            ),
        ),
    ],
)
def test_body_is_not_parsed_as_the_next_request(api, status, request_bytes):
    if b"text/plain" in request_bytes:
        request_bytes = request_bytes.replace(b"Content-Type: application/json\r\n", b"")

    (first, _), (second, second_id) = send_in_turn(api.address, request_bytes, NEXT)

    assert first == status
    assert (second, second_id) == (200, "next")


def test_clients_that_send_nothing_do_not_delay_others(api):
    """The worker gthread of gunicorn blocks a thread for 5 s for each of these clients."""
    with ExitStack() as idle:
        for _ in range(6):
            idle.enter_context(invalid_requests.connect_and_send(api.address, b""))
        started_at = time.monotonic()

        with Client(api.address) as client:
            assert client.request("GET", "/livez").status == 200

    assert time.monotonic() - started_at < 20


def test_pipelined_requests_are_answered_in_order(api):
    """The worker may read the next request together with a body; then no more bytes arrive."""
    request_bytes = (
        get()
        + post(invalid_requests.CONTENT_LENGTH, body=invalid_requests.BODY)
        + get(b"Connection: close")
    )

    received = exchange(api.address, request_bytes)

    statuses = re.findall(rb"HTTP/1.1 ([0-9]+)", received)
    assert statuses == [b"200", b"201", b"200"]


def test_response_is_sent_at_once(api):
    with invalid_requests.connect_and_send(api.address, get()) as connection:
        received = connection.recv(65536)

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"HTTP/1.1 200 OK" in head
    assert json.loads(body) == {"status": "ok"}


def test_idle_connection_is_closed(database_url):
    settings = {"WEB_CONCURRENCY": "1", "GUNICORN_CMD_ARGS": "--keep-alive 1"}
    with (
        serving(database_url, **settings) as server,
        invalid_requests.connect_and_send(server.address, get()) as used,
        invalid_requests.connect_and_send(server.address, b"") as silent,
    ):
        assert used.recv(65536).startswith(b"HTTP/1.1 200 OK")

        assert used.recv(1) == b""
        assert silent.recv(1) == b""


def test_clients_that_do_not_close_do_not_delay_others(api):
    """The worker gthread of gunicorn accepts nothing for up to 2 s after each response."""
    with ExitStack() as connections:
        started_at = time.monotonic()
        for _ in range(12):
            connection = connections.enter_context(
                invalid_requests.connect_and_send(api.address, get(b"Connection: close"))
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")

    assert time.monotonic() - started_at < 20


def test_server_closes_a_connection_that_the_client_leaves_open(api):
    with invalid_requests.connect_and_send(api.address, get(b"Connection: close")) as connection:
        while connection.recv(65536):
            pass
        # The other direction is closed, too: the server no longer accepts data.
        wait_until(lambda: is_reset(connection), "the connection is reset")


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False


def test_master_writes_no_metrics_files(database_url):
    """A scrape would add the master's files to those of the workers."""
    parent = (
        worker_numbers.MEMORY if worker_numbers.MEMORY.is_dir() else Path(tempfile.gettempdir())
    )
    with serving(database_url, WEB_CONCURRENCY="2", METRICS="true") as api:
        (folder,) = parent.glob(f"{worker_numbers.PREFIX}{api.process.pid}-*")

        wait_until(lambda: len(list(folder.glob("counter_*"))) >= 2, "both workers have files")

        assert {file.stem.rpartition("_")[2] for file in folder.iterdir()} == {"0", "1"}


def test_killed_worker_is_replaced(database_url):
    with serving(database_url, WEB_CONCURRENCY="1") as api:
        (killed,) = api.workers()
        os.kill(killed, signal.SIGKILL)

        wait_until(lambda: api.workers() not in ([], [killed]), "another worker has started")
        with Client(api.address) as client:
            assert client.request("GET", "/health").status == 200


def test_stop_waits_for_requests_in_progress(database_url):
    with (
        serving(database_url, WEB_CONCURRENCY="1", REQUEST_TIMEOUT="30") as api,
        psycopg.connect(database_url) as holder,
        socket.create_connection(api.address, timeout=60) as connection,
    ):
        holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        connection.sendall(post(invalid_requests.CONTENT_LENGTH, body=invalid_requests.BODY))
        wait_until(lambda: is_lock_awaited(holder), "the request waits for the lock")
        api.process.terminate()
        wait_until(lambda: not is_listening(api.address), "the server refuses connections")
        holder.commit()
        response = HTTPResponse(connection)
        response.begin()

        assert response.status == 201
        assert api.process.wait(30) == 0


def is_lock_awaited(holder: psycopg.Connection) -> bool:
    """Whether another connection to the same database waits for a lock."""
    query = (
        "SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE NOT granted AND datname = current_database()"
    )
    return bool(holder.execute(query).fetchall())


def is_listening(address) -> bool:
    try:
        socket.create_connection(address, timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


def test_incomplete_request_does_not_delay_the_end_of_a_worker(database_url):
    """The worker gthread of gunicorn waits for the request until it is killed after 30 s."""
    with (
        serving(database_url, WEB_CONCURRENCY="1", REQUEST_TIMEOUT="0.1") as api,
        invalid_requests.connect_and_send(api.address, get()[:-2]),
        invalid_requests.connect_and_send(api.address, post(b"Content-Length: 9", body=b"{")),
    ):
        (before,) = api.workers()
        # This response shows that the only worker has begun to read the two requests above.
        with Client(api.address) as client:
            assert client.request("GET", "/livez").status == 200
        api.process.send_signal(signal.SIGHUP)
        wait_until(lambda: api.workers() not in ([], [before]), "another worker has started")
        wait_until(lambda: before not in api.workers(), "the worker has ended", 60)

        assert "WORKER TIMEOUT" not in api.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--certfile a.pem", "certfile"),
        ("--keyfile a.pem", "keyfile"),
        ("--access-logfile -", "accesslog"),
        ("--proxy-protocol auto", "proxy_protocol"),
    ],
)
def test_setting_without_effect_is_refused_at_start(arguments, name):
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/todo", "AUTH_MODE": "none"}
    process = subprocess.run(
        [sys.executable, "-m", "gunicorn"],
        cwd=ROOT,
        env=environment(GUNICORN_CMD_ARGS=arguments, PORT=str(free_port()), **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 1
    assert f"Remove these settings, which this worker ignores: {name}." in process.stderr


def can_unshare() -> bool:
    unshare = shutil.which("unshare")
    command = ["unshare", "--pid", "--fork", "true"]
    return (
        bool(unshare) and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_unshare(), reason="needs unshare, and the permission to use it")
def test_sigterm_ends_the_first_process_of_a_container(database_url):
    port = free_port()
    settings = {"DATABASE_URL": database_url, "AUTH_MODE": "none", "PORT": str(port)}
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    container = subprocess.Popen(
        [*unshare, sys.executable, "-m", "gunicorn"],
        cwd=ROOT,
        env=environment(**settings),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: is_listening(("127.0.0.1", port)), "the server listens")
        with Client(("127.0.0.1", port)) as client:
            assert client.request("GET", "/health").status == 200
        (first,) = children(container.pid)
        assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[1] == "1"
        os.kill(first, signal.SIGTERM)

        assert container.wait(30) == 0
    finally:
        container.kill()
        container.wait()


def test_worker_opens_a_connection_before_it_accepts_requests(make_app):
    pool = make_app().services.pool
    pool.open()

    pool.await_connection(30)

    assert pool._pool.get_stats()["pool_available"] >= 1


def test_worker_starts_without_a_database(make_app):
    pool = make_app(DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/todo").services.pool
    pool.open()

    pool.await_connection(0.1)

    assert pool._pool.get_stats()["pool_available"] == 0


def test_connection_of_a_slow_request_is_closed(api, request):
    if not request.config.option.full:
        pytest.skip("takes half a minute; runs with --full")
    with (
        invalid_requests.connect_and_send(api.address, get()[:-2]) as slow,
        Client(api.address, timeout=60) as client,
    ):
        # The slow request does not block the only thread.
        assert client.request("GET", "/livez").status == 200
        slow.settimeout(30)
        assert slow.recv(1) == b""
