"""Faulty applications and hostile clients, against a worker of its own on a real socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from fault_injection.servers import ROOT, children, free_port, wait_until

pytestmark = pytest.mark.slow

APPS = ROOT / "tests" / "apps"
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
THREADS = 2
KEEP_ALIVE = 2  # seconds
SECONDS = 30  # in which a connection ends, whatever happened to it

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(params=["python", "fast"])
def server(request, tmp_path):
    """One worker that serves `faulty.app`: its address, its log, and its process id."""
    if request.param == "fast":
        pytest.importorskip("gunicorn_h1c")
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}"),
                *("--worker-class", "todo_api.server.worker.Worker", "--threads", str(THREADS)),
                *("--no-control-socket", "--keep-alive", str(KEEP_ALIVE)),
                *("--http-parser", request.param, "faulty:app"),
            ],
            cwd=APPS,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | COVERAGE,
            stdout=stream,
            stderr=stream,
        )
    address = ("127.0.0.1", port)

    def is_up():
        with suppress(OSError):
            return exchange(address, get("echo/up", "Connection: close")).endswith(b"up")
        return False

    try:
        wait_until(is_up, "the server answers")
        (worker,) = children(process.pid)
        yield SimpleNamespace(address=address, log=log, worker=worker)
    finally:
        process.terminate()
        process.wait(60)


def get(path: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} /{path} HTTP/1.1", "Host: a", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def receive(connection: socket.socket) -> bytes:
    """All that comes until the server closes; TimeoutError if it does not."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    with socket.create_connection(address, timeout=SECONDS) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        return receive(connection)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in STATUS_LINE.findall(received)]


LAST = get("echo/last", "Connection: close")


@pytest.mark.parametrize("path", ["close-raises", "write-and-raise"])
def test_an_exception_after_the_response_is_not_a_second_response(server, path):
    received = exchange(server.address, get(path) + LAST)

    assert statuses(received) == [200]
    assert received.endswith(b"\r\n\r\nwhole")
    assert "a response was broken off" in server.log.read_text()


def test_a_body_shorter_than_its_content_length_ends_the_connection(server):
    received = exchange(server.address, get("too-short") + LAST)

    assert statuses(received) == [200]
    assert received.endswith(b"\r\n\r\nwhole")
    assert "5 of 10 bytes were sent" in server.log.read_text()


@pytest.mark.parametrize("path", ["os-error", "stop-iteration"])
def test_an_exception_of_the_application_is_answered_and_logged(server, path):
    received = exchange(server.address, get(path) + LAST)

    assert statuses(received) == [500]
    assert "of the application" in server.log.read_text()


def test_a_connect_request_ends_the_connection(server):
    received = exchange(server.address, get("echo/first", method="CONNECT") + LAST)

    assert statuses(received) == [200]
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize(
    ("fields", "body", "answered"),
    [
        (["Content-Length: 65535"], b"x" * 65535, 2),
        (["Content-Length: 65536"], b"x" * 65536, 1),
        (["Transfer-Encoding: chunked"], b"10000\r\n" + b"x" * 65536 + b"\r\n0\r\n\r\n", 1),
        (["Transfer-Encoding: chunked"], b"zz\r\n", 1),
    ],
)
def test_keep_alive_is_said_only_if_the_next_request_is_answered(server, fields, body, answered):
    received = exchange(server.address, get("echo/first", *fields, method="POST", body=body) + LAST)

    assert statuses(received) == [200] * answered
    assert received.count(b"\r\nConnection: keep-alive\r\n") == answered - 1


def test_a_chunked_body_that_is_read_keeps_the_connection(server):
    chunks = b"5\r\nwhole\r\n0\r\nX-Trailer: 1\r\n\r\n"
    request = get("read", "Transfer-Encoding: chunked", method="POST", body=chunks)

    received = exchange(server.address, request * 3 + LAST)

    assert statuses(received) == [200] * 4
    assert received.count(b"\r\nConnection: keep-alive\r\n") == 3


def test_a_head_longer_than_64_kib_is_refused(server):
    fields = [f"X-{number}: {'x' * 8000}" for number in range(9)]

    accepted = exchange(server.address, get("echo/a", "Connection: close", *fields[:7]))
    refused = exchange(server.address, get("echo/a", "Connection: close", *fields))

    assert statuses(accepted) == [200]
    assert statuses(refused) == [431]


def wait_for_threads(address: tuple[str, int]) -> list[socket.socket]:
    """Connections with one request each, of which those of the third round wait for 3 s."""
    connections = [socket.create_connection(address, timeout=SECONDS) for _ in range(3 * THREADS)]
    for connection in connections:
        connection.sendall(get("sleep/1.5"))
    time.sleep(0.5)  # all have arrived, and the first ones are served
    return connections


def answers(connections: list[socket.socket]) -> list[list[int]]:
    """The statuses that each connection received, after all of them are closed."""
    received = [statuses(receive(connection)) for connection in connections]
    for connection in connections:
        connection.close()
    return received


def test_requests_that_wait_for_a_thread_are_answered_when_the_worker_stops(server):
    connections = wait_for_threads(server.address)

    os.kill(server.worker, signal.SIGTERM)

    assert answers(connections) == [[200]] * len(connections)


def test_requests_that_wait_for_a_thread_outlive_the_idle_timeout(server):
    connections = wait_for_threads(server.address)

    assert answers(connections) == [[200]] * len(connections)


def test_a_half_closed_client_gets_every_response(server):
    with socket.create_connection(server.address, timeout=SECONDS) as connection:
        connection.sendall(get("echo/a") * 50)
        connection.shutdown(socket.SHUT_WR)
        received = receive(connection)

    assert statuses(received) == [200] * 50


@pytest.mark.parametrize(
    ("field", "body"),
    [("Content-Length: 10", b"whole"), ("Transfer-Encoding: chunked", b"5\r\nwhole\r\n")],
)
def test_a_truncated_body_does_not_reach_the_application_as_a_whole_one(server, field, body):
    with socket.create_connection(server.address, timeout=SECONDS) as connection:
        connection.sendall(get("read", field, method="POST", body=body))
        connection.shutdown(socket.SHUT_WR)
        received = receive(connection)

    assert statuses(received) == []
