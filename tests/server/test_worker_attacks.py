"""The worker with faulty applications and hostile clients, on a real socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from faults.servers import await_that, children
from tests.support.worker_server import worker_server

pytestmark = pytest.mark.slow

THREADS = 2
KEEP_ALIVE = 2  # seconds
TIMEOUT = 30  # seconds, within which every connection must end

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(params=["python", "fast"])
def server(request, tmp_path):
    """Start one worker that serves `faulty.app`; return its address, log and process id."""
    if request.param == "fast":
        pytest.importorskip("gunicorn_h1c")
    log = tmp_path / "log"
    options = {"threads": THREADS, "keep-alive": KEEP_ALIVE, "http-parser": request.param}

    def is_up():
        with suppress(OSError):
            return exchange(address, get("echo/up", "Connection: close")).endswith(b"up")
        return False

    arguments = [f"--{name}={value}" for name, value in options.items()]
    with worker_server("faulty:app", log, *arguments) as (process, address):
        await_that(is_up, "the server responds")
        (worker,) = children(process.pid)
        yield SimpleNamespace(address=address, log=log, worker=worker)


def get(path: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} /{path} HTTP/1.1", "Host: a", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def receive(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes; raise TimeoutError if it does not."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def exchange(address: tuple[str, int], request: bytes) -> bytes:
    with socket.create_connection(address, timeout=TIMEOUT) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return receive(connection)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in STATUS_LINE.findall(received)]


LAST = get("echo/last", "Connection: close")


@pytest.mark.parametrize("path", ["close-raises", "write-and-raise"])
def test_exception_after_the_response_sends_no_second_response(server, path):
    received = exchange(server.address, get(path) + LAST)

    assert statuses(received) == [200]
    assert received.endswith(b"\r\n\r\nwhole")
    assert "connection closed: sending a response failed" in server.log.read_text()


def test_body_shorter_than_its_content_length_closes_the_connection(server):
    received = exchange(server.address, get("too-short") + LAST)

    assert statuses(received) == [200]
    assert received.endswith(b"\r\n\r\nwhole")
    assert "5 of 10 bytes were sent" in server.log.read_text()


@pytest.mark.parametrize("path", ["os-error", "stop-iteration"])
def test_application_exception_gives_500_and_is_logged(server, path):
    received = exchange(server.address, get(path) + LAST)

    assert statuses(received) == [500]
    assert "of the application" in server.log.read_text()


def test_connect_request_closes_the_connection(server):
    received = exchange(server.address, get("echo/first", method="CONNECT") + LAST)

    assert statuses(received) == [200]
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize(
    ("fields", "body", "responses"),
    [
        (["Content-Length: 65535"], b"x" * 65535, 2),
        (["Content-Length: 65536"], b"x" * 65536, 1),
        (["Transfer-Encoding: chunked"], b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n", 1),
        (["Transfer-Encoding: chunked"], b"zz\r\n", 1),
    ],
)
def test_keep_alive_is_announced_only_if_the_next_request_is_answered(
    server, fields, body, responses
):
    received = exchange(server.address, get("echo/first", *fields, method="POST", body=body) + LAST)

    assert statuses(received) == [200] * responses
    assert received.count(b"\r\nConnection: keep-alive\r\n") == responses - 1


def test_connection_stays_open_after_a_chunked_body_is_read(server):
    chunks = b"5\r\nwhole\r\n0\r\nX-Trailer: 1\r\n\r\n"
    request = get("read", "Transfer-Encoding: chunked", method="POST", body=chunks)

    received = exchange(server.address, request * 3 + LAST)

    assert statuses(received) == [200] * 4
    assert received.count(b"\r\nConnection: keep-alive\r\n") == 3


def test_request_head_over_64_kib_is_refused(server):
    fields = [f"X-{number}: {'x' * 8000}" for number in range(9)]

    short = exchange(server.address, get("echo/a", "Connection: close", *fields[:7]))
    long = exchange(server.address, get("echo/a", "Connection: close", *fields))

    assert statuses(short) == [200]
    assert statuses(long) == [431]


def send_more_requests_than_threads(address: tuple[str, int]) -> list[socket.socket]:
    """Open connections with one request each; the last of them wait 3 s for a thread."""
    connections = [socket.create_connection(address, timeout=TIMEOUT) for _ in range(3 * THREADS)]
    for connection in connections:
        connection.sendall(get("sleep/1.5"))
    time.sleep(0.5)  # all requests have arrived, and the threads serve the first ones
    return connections


def read_statuses(connections: list[socket.socket]) -> list[list[int]]:
    """Return the statuses of the responses on each connection."""
    received = [statuses(receive(connection)) for connection in connections]
    for connection in connections:
        connection.close()
    return received


def test_requests_that_wait_for_a_thread_are_answered_when_the_worker_stops(server):
    connections = send_more_requests_than_threads(server.address)

    os.kill(server.worker, signal.SIGTERM)

    assert read_statuses(connections) == [[200]] * len(connections)


def test_idle_timeout_does_not_end_requests_that_wait_for_a_thread(server):
    connections = send_more_requests_than_threads(server.address)

    assert read_statuses(connections) == [[200]] * len(connections)


def test_half_closed_client_gets_every_response(server):
    with socket.create_connection(server.address, timeout=TIMEOUT) as connection:
        connection.sendall(get("echo/a") * 50)
        connection.shutdown(socket.SHUT_WR)
        received = receive(connection)

    assert statuses(received) == [200] * 50


@pytest.mark.parametrize(
    ("field", "body"),
    [("Content-Length: 10", b"whole"), ("Transfer-Encoding: chunked", b"5\r\nwhole\r\n")],
)
def test_truncated_body_does_not_reach_the_application_as_complete(server, field, body):
    with socket.create_connection(server.address, timeout=TIMEOUT) as connection:
        connection.sendall(get("read", field, method="POST", body=body))
        connection.shutdown(socket.SHUT_WR)
        received = receive(connection)

    assert statuses(received) == []
