"""Requests that are not HTTP, are ambiguous, or never end, while other clients send valid requests.

Each of them gets one response with problem details. Then the server closes the connection, so the
bytes after the request are never read as a second request. The requests of the other clients
succeed, and no worker grows by more than MAX_GROWTH.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fault_injection import print_figures
from fault_injection.clients import Client, Response
from fault_injection.servers import postgresql, serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fault_injection.servers import Api

TASKS = b"/api/5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10/tasks"
MAX_BODY = 256 * 1024  # bytes
MAX_GROWTH = 20  # MB, of one worker
TIMEOUT = 10  # seconds, for the response and the close of the connection

# The client sends it after each of the requests below. The server must never serve it.
SMUGGLED_REQUEST = b"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Request-Id: smuggled\r\n\r\n"


def get(*fields: bytes, line: bytes = b"GET /livez HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def post(*fields: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    line = b"POST " + TASKS + b" " + version
    return get(b"Content-Type: application/json", *fields, line=line) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


def client_hello() -> bytes:
    """Return the first message of a TLS client."""
    output = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), output, server_hostname="a"
        ).do_handshake()
    return output.read()


BODY = b'{"title": "Buy oat milk"}'
BODY_SIZE = b"%d" % len(BODY)
CONTENT_LENGTH = b"Content-Length: " + BODY_SIZE

# For each name, the status of the response and the bytes of the request.
INVALID_REQUESTS: dict[str, tuple[int, bytes]] = {
    "a body one byte too long": (
        413,
        post(b"Content-Length: %d" % (MAX_BODY + 1), body=b" " * (MAX_BODY + 1)),
    ),
    "a body far too long": (413, post(b"Content-Length: 99999999999", body=b" " * MAX_BODY)),
    "101 fields": (431, get(*(b"X-%d: 1" % number for number in range(100)))),
    "101 fields, 100 of them ignored for their underscore": (
        431,
        get(*(b"X_%d: 1" % n for n in range(100))),
    ),
    "a field too long": (431, get(b"X-Long: " + b"x" * 9000)),
    "a field that does not end": (431, get()[:-2] + b"X-Long: " + b"x" * 1_000_000),
    "a request line too long": (414, get(line=b"GET /" + b"x" * 5000 + b" HTTP/1.1")),
    "a request line that does not end": (414, b"GET /" + b"x" * 100_000),
    "no host": (400, get(host=b"")),
    "two hosts": (400, get(b"Host: b")),
    "a host with a path": (400, get(host=b"Host: a/b")),
    "a host with a user": (400, get(host=b"Host: a@b")),
    "a host that is a list": (400, get(host=b"Host: a, b")),
    "a method in lower case": (400, get(line=b"get /livez HTTP/1.1")),
    "a method that is no token": (400, get(line=b"G(T /livez HTTP/1.1")),
    "no method": (400, get(line=b"/livez HTTP/1.1")),
    "no version": (400, get(line=b"GET /livez")),
    "HTTP/1.2": (400, get(line=b"GET /livez HTTP/1.2")),
    "two spaces after the method": (400, get(line=b"GET  /livez HTTP/1.1")),
    "two spaces before the version": (400, get(line=b"GET /livez  HTTP/1.1")),
    "a space after the version": (400, get(line=b"GET /livez HTTP/1.1 ")),
    "a space before the method": (400, get(line=b" GET /livez HTTP/1.1")),
    "a tab after the method": (400, get(line=b"GET\t/livez HTTP/1.1")),
    "an asterisk with GET": (400, get(line=b"GET * HTTP/1.1")),
    "a target that is only an authority": (400, get(line=b"GET a:80 HTTP/1.1")),
    "a target without a slash": (400, get(line=b"GET livez HTTP/1.1")),
    "a target with userinfo": (400, get(line=b"GET http://user@a/livez HTTP/1.1")),
    "a target with a password": (400, get(line=b"GET http://user:word@a/livez HTTP/1.1")),
    "a target of another scheme": (400, get(line=b"GET ftp://a/livez HTTP/1.1")),
    "a target without an authority": (400, get(line=b"GET http:///livez HTTP/1.1")),
    "a target with a fragment": (400, get(line=b"GET /livez#a HTTP/1.1")),
    "HTTP/3.0": (400, get(line=b"GET /livez HTTP/3.0")),
    "a version with two digits after the dot": (400, get(line=b"GET /livez HTTP/1.10")),
    "a version in lower case": (400, get(line=b"GET /livez http/1.1")),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    "a path with a space": (400, get(line=b"GET /live z HTTP/1.1")),
    "a path that is not ASCII": (400, get(line="GET /livé HTTP/1.1".encode())),
    "a path with a NUL": (400, get(line=b"GET /liv\0ez HTTP/1.1")),
    "TLS": (400, client_hello()),
    "a PROXY line": (400, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n" + get()),
    "an unknown expectation": (417, post(b"Expect: a miracle", CONTENT_LENGTH, body=BODY)),
    "a length and a coding": (400, chunked(b"0\r\n\r\n", CONTENT_LENGTH)),
    "a coding and a length": (
        400,
        post(CONTENT_LENGTH, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    ),
    "the same length twice": (400, post(CONTENT_LENGTH, CONTENT_LENGTH, body=BODY)),
    "two lengths": (400, post(CONTENT_LENGTH, b"Content-Length: 0", body=BODY)),
    "a list of lengths": (400, post(CONTENT_LENGTH + b", " + BODY_SIZE, body=BODY)),
    "a negative length": (400, post(b"Content-Length: -1", body=BODY)),
    "a length with a sign": (400, post(b"Content-Length: +" + BODY_SIZE, body=BODY)),
    "a length in hexadecimal": (400, post(b"Content-Length: 0x19", body=BODY)),
    "an empty length": (400, post(b"Content-Length: ", body=BODY)),
    "a length with a digit that is not ASCII": (
        400,
        post("Content-Length: ²".encode("latin-1"), body=BODY),
    ),
    "an unknown coding": (400, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "chunked twice": (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "a coding after chunked": (400, post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n")),
    "a coding without chunked": (400, post(b"Transfer-Encoding: gzip", CONTENT_LENGTH, body=BODY)),
    "identity before chunked": (
        400,
        chunked(b"0\r\n\r\n").replace(b"g: chunked", b"g: identity, chunked"),
    ),
    "a coding before chunked": (
        400,
        chunked(b"0\r\n\r\n").replace(b"g: chunked", b"g: gzip, chunked"),
    ),
    "chunked in two fields": (
        400,
        chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
    ),
    "a control character before the coding": (
        400,
        post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    ),
    "chunked in HTTP/1.0": (
        400,
        post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"HTTP/1.0"),
    ),
    "lines that end in LF": (400, get().replace(b"\r\n", b"\n")),
    "one line that ends in LF": (400, get(b"X-One: 1\nX-Two: 2")),
    "a CR within a line": (400, get(b"X-One: 1\rX-Two: 2")),
    "a folded line": (400, get(b"X-One: 1", b" 2")),
    "a folded length": (400, post(CONTENT_LENGTH, b" 0", body=BODY)),
    "a folded first line": (400, get(b" X-One: 1", host=b"")),
    "a space before the colon": (400, post(b"Content-Length : " + BODY_SIZE, body=BODY)),
    "a tab before the colon": (400, post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n")),
    "a NUL in a field": (400, get(b"X-One: 1\x002")),
    "a NUL in a name": (400, get(b"X-\0One: 1")),
    "a field without a colon": (400, get(b"X-One")),
    "a field without a name": (400, get(b": 1")),
    "a chunk without a size": (400, chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size that is not a number": (400, chunked(b"xyz\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size with a prefix": (400, chunked(b"0x19\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a negative chunk size": (400, chunked(b"-1\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size after a space": (400, chunked(b" 19\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size that does not end": (400, chunked(b"0" * 20_000)),
    "a chunk longer than its size": (400, chunked(b"5\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk that ends in LF": (400, chunked(b"19\n" + BODY + b"\n0\n\n\r\n")),
    "a chunk with a CR in its extension": (400, chunked(b"19;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a trailer with a length": (
        400,
        chunked(b"19\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n"),
    ),
    "a trailer without a colon": (400, chunked(b"19\r\n" + BODY + b"\r\n0\r\nX\r\n\r\n")),
}


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    """Send the data, and return all received bytes until the server closes the connection.

    Raises AssertionError if the server does not close it within TIMEOUT.
    """
    with socket.create_connection(address, timeout=TIMEOUT) as connection:
        received = b""
        try:
            # The server may close the connection before it has read all of the data.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            while data := connection.recv(65536):
                received += data
        except TimeoutError:
            raise AssertionError(f"Still open, after {received[:300]!r}") from None
        except ConnectionResetError:
            pass
        return received


def parse_response(received: bytes) -> Response:
    """Parse a single response. Raises AssertionError if there is none, or more than one."""
    head, end, body = received.partition(b"\r\n\r\n")
    assert end, f"No response: {received[:300]!r}"
    line, *fields = head.decode("ascii").split("\r\n")
    pairs = (field.partition(": ") for field in fields)
    headers = {name.lower(): value for name, _, value in pairs}
    size = int(headers["content-length"])
    assert len(body) == size, f"Not exactly one response: {received[:2000]!r}"
    return Response(int(line.split()[1]), headers, body)


def assert_refused(received: bytes, status: int) -> dict[str, Any]:
    """Assert that the bytes are one problem response with this status. Return the problem."""
    response = parse_response(received)
    assert response.status == status, str(response)
    assert response.headers["content-type"] == "application/problem+json", response.headers
    assert response.headers["cache-control"] == "no-store", response.headers
    assert response.headers["x-content-type-options"] == "nosniff", response.headers
    problem: dict[str, Any] = response.json
    assert set(problem) == {"type", "title", "status", "detail", "instance"}, problem
    assert problem["status"] == status, problem
    assert re.fullmatch("/problems/[a-z-]+", problem["type"]), problem
    assert problem["instance"] == response.headers["x-request-id"], problem
    return problem


def memory(process: int) -> float:
    """Return the private memory of the process in MB."""
    fields = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+)", fields)) / 1024


class ValidClient(threading.Thread):
    """A client that sends valid requests, and records the failures."""

    def __init__(self, api: Api, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._stop_asked = stop
        self.responses = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        with Client(self._api.address) as client:
            while not self._stop_asked.is_set():
                started = time.monotonic()
                try:
                    response = client.request("POST", TASKS.decode(), {"title": "Buy oat milk"})
                except (OSError, HTTPException) as error:
                    self.failed.append(repr(error))
                else:
                    self.responses += 1
                    if response.status != 201:
                        self.failed.append(str(response))
                self.slowest = max(self.slowest, time.monotonic() - started)
                time.sleep(0.02)


def connect_and_send(address: tuple[str, int], data: bytes) -> socket.socket:
    """Open a connection, send the data, and return the connection."""
    connection = socket.create_connection(address, timeout=TIMEOUT)
    connection.sendall(data)
    return connection


def repeat_requests(times: int) -> Iterator[tuple[str, int, bytes]]:
    """Yield the name, status and bytes of each invalid request, `times` times."""
    for _ in range(times):
        for name, (status, data) in INVALID_REQUESTS.items():
            yield name, status, data


def assert_all_refused(address: tuple[str, int], requests: Iterable[tuple[str, int, bytes]]) -> int:
    """Send all requests, and return their number. AssertionError names one that is not refused."""
    count = 0
    for name, status, data in requests:
        try:
            assert_refused(exchange(address, data + SMUGGLED_REQUEST), status)
        except AssertionError as error:
            error.add_note(name)
            raise
        count += 1
    return count


def nested_json_request(levels: int) -> bytes:
    body = b'{"title":' * levels + b"1" + b"}" * levels
    return post(b"Content-Length: %d" % len(body), b"Connection: close", body=body)


def run(*, short: bool) -> None:
    """Send all invalid requests while clients send valid ones and idle connections are open."""
    with (
        postgresql() as server,
        # More slots than clients, so that the admission limiter refuses no request with 503.
        serving(server.url(), WEB_CONCURRENCY="1", WEB_THREADS="8", LOG_LEVEL="info") as api,
        ExitStack() as idle,
    ):
        # More idle connections than threads: an idle connection does not occupy a thread.
        for _ in range(32):
            idle.enter_context(connect_and_send(api.address, b""))
        # The caches of a worker grow in the first round, before its memory is measured.
        refused = assert_all_refused(api.address, repeat_requests(1))
        (process,) = api.workers()
        memory_before = memory(process)
        stop = threading.Event()
        clients = [ValidClient(api, stop) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            refused += assert_all_refused(api.address, repeat_requests(2 if short else 50))
            for _ in range(2 if short else 50):
                assert_refused(exchange(api.address, nested_json_request(10_000)), 400)
        finally:
            stop.set()
            for client in clients:
                client.join(60)
        growth = memory(process) - memory_before
        failed = [failure for client in clients for failure in client.failed]
        assert not failed, failed[:10]
        assert api.workers() == [process], "A worker was lost."
        assert growth <= MAX_GROWTH, f"The worker grew by {growth:.1f} MB."
        log = api.log.read_text()
        assert "Traceback" not in log, log[-4000:]
        assert "smuggled" not in log, "The server read bytes after a refused request as a request."
        levels = {json.loads(line)["level"] for line in log.splitlines()}
        assert levels <= {"info", "warning"}, levels
        print_figures(
            kinds_of_invalid_requests=len(INVALID_REQUESTS),
            refused=refused,
            responses_of_valid_requests=sum(client.responses for client in clients),
            failed=len(failed),
            slowest_of_these=f"{max(client.slowest for client in clients):.2f} s",
            growth_of_the_worker=f"{growth:.1f} MB",
        )
