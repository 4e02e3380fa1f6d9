"""Requests that are not HTTP, or mean two things, or never end, while other clients work.

Each is refused in one answer of problem details, after which the connection is closed: what follows
on it is not read as a request. Nobody waits, nothing fails, and no worker grows by much.
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
from fault_injection.clients import Answer, Client
from fault_injection.servers import postgresql, serving

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fault_injection.servers import Api

TASKS = b"/api/5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10/tasks"
MAX_BODY = 128 * 1024  # bytes
MAX_GROWTH = 20  # MB, of one worker
SECONDS = 10  # in which a refusal comes and the connection is closed

# Sent after each of the requests below, it must never be answered.
SMUGGLED_REQUEST = b"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Request-Id: smuggled\r\n\r\n"


def get(*fields: bytes, line: bytes = b"GET /livez HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def post(*fields: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    line = b"POST " + TASKS + b" " + version
    return get(b"Content-Type: application/json", *fields, line=line) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


def client_hello() -> bytes:
    """What a client sends that takes the port for one of TLS."""
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), sent, server_hostname="a"
        ).do_handshake()
    return sent.read()


BODY = b'{"title": "Buy oat milk"}'
BODY_SIZE = b"%d" % len(BODY)
CONTENT_LENGTH = b"Content-Length: " + BODY_SIZE

# By name: the status of the refusal, and what is sent.
INVALID_REQUESTS: dict[str, tuple[int, bytes]] = {
    "a body one byte too long": (
        413,
        post(b"Content-Length: %d" % (MAX_BODY + 1), body=b" " * (MAX_BODY + 1)),
    ),
    "a body far too long": (413, post(b"Content-Length: 99999999999", body=b" " * MAX_BODY)),
    "101 fields": (431, get(*(b"X-%d: 1" % number for number in range(100)))),
    "101 fields, of which 100 are dropped": (431, get(*(b"X_%d: 1" % n for n in range(100)))),
    "a field too long": (431, get(b"X-Long: " + b"x" * 9000)),
    "a field that does not end": (431, get()[:-2] + b"X-Long: " + b"x" * 1_000_000),
    "a request line too long": (414, get(line=b"GET /" + b"x" * 5000 + b" HTTP/1.1")),
    "a request line that does not end": (414, b"GET /" + b"x" * 100_000),
    "no host": (400, get(host=b"")),
    "two hosts": (400, get(b"Host: b")),
    "a host with a path": (400, get(host=b"Host: a/b")),
    "a host with a user": (400, get(host=b"Host: a@b")),
    "a host that is two": (400, get(host=b"Host: a, b")),
    "a method in lower case": (400, get(line=b"get /livez HTTP/1.1")),
    "a method that is no token": (400, get(line=b"G(T /livez HTTP/1.1")),
    "no method": (400, get(line=b"/livez HTTP/1.1")),
    "no version": (400, get(line=b"GET /livez")),
    "a version of HTTP/1 to come": (400, get(line=b"GET /livez HTTP/1.2")),
    "two spaces after the method": (400, get(line=b"GET  /livez HTTP/1.1")),
    "two spaces before the version": (400, get(line=b"GET /livez  HTTP/1.1")),
    "a space behind the version": (400, get(line=b"GET /livez HTTP/1.1 ")),
    "a space before the method": (400, get(line=b" GET /livez HTTP/1.1")),
    "a tab after the method": (400, get(line=b"GET\t/livez HTTP/1.1")),
    "an asterisk with GET": (400, get(line=b"GET * HTTP/1.1")),
    "a target of an authority only": (400, get(line=b"GET a:80 HTTP/1.1")),
    "a target without a slash": (400, get(line=b"GET livez HTTP/1.1")),
    "a target with userinfo": (400, get(line=b"GET http://user@a/livez HTTP/1.1")),
    "a target with a password": (400, get(line=b"GET http://user:word@a/livez HTTP/1.1")),
    "a target of another scheme": (400, get(line=b"GET ftp://a/livez HTTP/1.1")),
    "a target without an authority": (400, get(line=b"GET http:///livez HTTP/1.1")),
    "a target with a fragment": (400, get(line=b"GET /livez#a HTTP/1.1")),
    "a version to come": (400, get(line=b"GET /livez HTTP/3.0")),
    "a version with more digits": (400, get(line=b"GET /livez HTTP/1.10")),
    "a version in lower case": (400, get(line=b"GET /livez http/1.1")),
    "HTTP/2 from the start": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    "a path with a space": (400, get(line=b"GET /live z HTTP/1.1")),
    "a path beyond ASCII": (400, get(line="GET /livé HTTP/1.1".encode())),
    "a path with a NUL": (400, get(line=b"GET /liv\0ez HTTP/1.1")),
    "TLS": (400, client_hello()),
    "a PROXY line": (400, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n" + get()),
    "another expectation": (417, post(b"Expect: a miracle", CONTENT_LENGTH, body=BODY)),
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
    "a length that is none": (400, post(b"Content-Length: ", body=BODY)),
    "a length of another script": (400, post("Content-Length: ²".encode("latin-1"), body=BODY)),
    "a coding that nobody knows": (400, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
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
    "a coding after a control": (400, post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
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
    "a chunk of no size": (400, chunked(b"\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size that is none": (400, chunked(b"xyz\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size with a prefix": (400, chunked(b"0x19\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a negative chunk size": (400, chunked(b"-1\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size after a space": (400, chunked(b" 19\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk size that does not end": (400, chunked(b"0" * 20_000)),
    "a chunk longer than its size": (400, chunked(b"5\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a chunk that ends in LF": (400, chunked(b"19\n" + BODY + b"\n0\n\n\r\n")),
    "a chunk with a CR in its extension": (400, chunked(b"19;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n")),
    "a trailer that gives a length": (
        400,
        chunked(b"19\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n"),
    ),
    "a trailer that is no field": (400, chunked(b"19\r\n" + BODY + b"\r\n0\r\nX\r\n\r\n")),
}


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """All that comes back until the server closes; AssertionError if it does not."""
    with socket.create_connection(address, timeout=SECONDS) as connection:
        received = b""
        try:
            # What the server does not read any more is lost on it.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(sent)
            while data := connection.recv(65536):
                received += data
        except TimeoutError:
            raise AssertionError(f"Still open, after {received[:300]!r}") from None
        except ConnectionResetError:
            pass
        return received


def parse_response(received: bytes) -> Answer:
    """The one answer that was received; AssertionError if there was none, or more."""
    head, end, body = received.partition(b"\r\n\r\n")
    assert end, f"No answer: {received[:300]!r}"
    line, *fields = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in fields)}
    assert len(body) == int(headers["content-length"]), f"Not one answer: {received[:2000]!r}"
    return Answer(int(line.split()[1]), headers, body)


def assert_refused(received: bytes, status: int) -> dict[str, Any]:
    """Assert that this is a problem of that status, and no more; the problem."""
    answer = parse_response(received)
    assert answer.status == status, str(answer)
    assert answer.headers["content-type"] == "application/problem+json", answer.headers
    assert answer.headers["cache-control"] == "no-store", answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff", answer.headers
    problem: dict[str, Any] = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "instance"}, problem
    assert problem["status"] == status, problem
    assert re.fullmatch("/problems/[a-z-]+", problem["type"]), problem
    assert problem["instance"] == answer.headers["x-request-id"], problem
    return problem


def memory(process: int) -> float:
    """MB of memory that are the process's own."""
    fields = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+)", fields)) / 1024


class Worker(threading.Thread):
    """A client that does what clients do, and says what went wrong."""

    def __init__(self, api: Api, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._stop_asked = stop
        self.answered = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        with Client(self._api.address) as client:
            while not self._stop_asked.is_set():
                begun = time.monotonic()
                try:
                    answer = client.request("POST", TASKS.decode(), {"title": "Buy oat milk"})
                except (OSError, HTTPException) as error:
                    self.failed.append(repr(error))
                else:
                    self.answered += 1
                    if answer.status != 201:
                        self.failed.append(str(answer))
                self.slowest = max(self.slowest, time.monotonic() - begun)
                time.sleep(0.02)


def connect_and_send(address: tuple[str, int], sent: bytes) -> socket.socket:
    """A connection on which this was sent, and nothing will follow."""
    connection = socket.create_connection(address, timeout=SECONDS)
    connection.sendall(sent)
    return connection


def rounds(count: int) -> Iterator[tuple[str, int, bytes]]:
    for _ in range(count):
        for name, (status, sent) in INVALID_REQUESTS.items():
            yield name, status, sent


def refuse_all(address: tuple[str, int], forms: Iterable[tuple[str, int, bytes]]) -> int:
    """Send all of them; how many there were. AssertionError names the one that was not refused."""
    count = 0
    for name, status, sent in forms:
        try:
            assert_refused(exchange(address, sent + SMUGGLED_REQUEST), status)
        except AssertionError as error:
            error.add_note(name)
            raise
        count += 1
    return count


def nested_json_request(levels: int) -> bytes:
    body = b'{"title":' * levels + b"1" + b"}" * levels
    return post(b"Content-Length: %d" % len(body), b"Connection: close", body=body)


def run(*, short: bool) -> None:
    """Send every form while clients work and idle connections are open."""
    with (
        postgresql() as server,
        # More threads than clients: no request is one too many, which would be a 503.
        serving(server.url(), WEB_CONCURRENCY="1", WEB_THREADS="8", LOG_LEVEL="info") as api,
        ExitStack() as idle,
    ):
        # More than the worker has threads, and none of them holds one.
        for _ in range(32):
            idle.enter_context(connect_and_send(api.address, b""))
        # Once before, for what a worker keeps of a first time.
        refused = refuse_all(api.address, rounds(1))
        (process,) = api.workers()
        before = memory(process)
        stop = threading.Event()
        clients = [Worker(api, stop) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            refused += refuse_all(api.address, rounds(2 if short else 50))
            for _ in range(2 if short else 50):
                assert_refused(exchange(api.address, nested_json_request(10_000)), 400)
        finally:
            stop.set()
            for client in clients:
                client.join(60)
        grown = memory(process) - before
        failed = [each for client in clients for each in client.failed]
        assert not failed, failed[:10]
        assert api.workers() == [process], "A worker was lost."
        assert grown <= MAX_GROWTH, f"The worker grew by {grown:.1f} MB."
        log = api.log.read_text()
        assert "Traceback" not in log, log[-4000:]
        assert "smuggled" not in log, "What followed a refused request was served."
        levels = {json.loads(line)["level"] for line in log.splitlines()}
        assert levels <= {"info", "warning"}, levels
        print_figures(
            forms=len(INVALID_REQUESTS),
            refused=refused,
            requests_of_others=sum(client.answered for client in clients),
            failed=len(failed),
            slowest_of_them=f"{max(client.slowest for client in clients):.2f} s",
            worker_grew_by=f"{grown:.1f} MB",
        )
