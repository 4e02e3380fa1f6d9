"""200 clients send a header, send a body or read a response as slowly as they can, behind nginx.

The requests of other clients succeed, and are hardly slower than without the slow clients.
"""

from __future__ import annotations

import socket
import statistics
import threading
import uuid
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.load import load, percentile
from fault_injection.nginx import nginx_proxy
from fault_injection.servers import postgresql, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW_CLIENTS = 200
RATE = 50  # requests of the other clients per second
MIN_SUCCESS = 0.999
TASKS = 100  # of 10,000 characters each: a page of 1 MiB is larger than the buffers of a socket
INTERVAL = 1.0  # seconds between two bytes of a slow client


class Limits(NamedTuple):
    """The rounds and their durations in seconds, and how much slower the p99 may become.

    A short run has longer limits, because the tests share their machine with other work.
    """

    rounds: int
    settle_seconds: float
    seconds: float
    max_factor: float
    max_extra_seconds: float


FULL = Limits(rounds=3, settle_seconds=5, seconds=20, max_factor=2, max_extra_seconds=0.005)
SHORT = Limits(rounds=1, settle_seconds=1, seconds=3, max_factor=2, max_extra_seconds=2.0)


def run(*, short: bool) -> None:
    limits = SHORT if short else FULL
    path = f"/api/{uuid.uuid4()}/tasks"
    with (
        postgresql() as server,
        serving(server.url(), AUTH_MODE="none") as api,
        nginx_proxy(api.address) as nginx,
    ):
        with Client(api.address) as client:
            for _ in range(TASKS):
                body = {"title": "Oats", "description": "x" * 10_000}
                created = client.request("POST", path, body)
                assert created.status == 201, created
        task = created.headers["location"]
        load(nginx.address, task, 1, rate=RATE)
        without, beside, disconnects = [], [], Counter[str]()
        for _ in range(limits.rounds):
            without.append(load(nginx.address, task, limits.seconds, rate=RATE))
            with slow_clients(nginx.address, path) as clients:
                wait_until(
                    lambda slow=clients: slow.connected == SLOW_CLIENTS,
                    "all slow clients are connected",
                )
                # During this load, gunicorn sends the pages of the slow readers to nginx.
                load(nginx.address, task, limits.settle_seconds, rate=RATE)
                beside.append(load(nginx.address, task, limits.seconds, rate=RATE))
            disconnects += clients.disconnects
    statuses = sum((result.statuses for result in beside), Counter[int]())
    success = statuses[200] / statuses.total()
    # The median of alternating rounds, because noise of the machine lasts longer than a round.
    p99_without, p99_beside = (
        statistics.median(percentile(99, result.seconds_of(200)) for result in results)
        for results in (without, beside)
    )
    print_figures(
        slow_clients=SLOW_CLIENTS,
        **{f"disconnected_{kind}": count for kind, count in sorted(disconnects.items())},
        requests_of_other_clients=statuses.total(),
        success=f"{success:.2%}",
        p99_without_slow_clients=f"{1000 * p99_without:.1f} ms",
        p99_with_slow_clients=f"{1000 * p99_beside:.1f} ms",
    )
    assert success >= MIN_SUCCESS, statuses
    assert p99_beside <= limits.max_factor * p99_without + limits.max_extra_seconds


class SlowClient:
    """A client that sends one byte or reads 64 bytes at a time."""

    def __init__(self, kind: str, start: bytes, address: tuple[str, int], source: str) -> None:
        self.kind = kind
        self._start = start
        self._address = address
        self._source = source
        self._socket = socket.socket()

    def connect(self) -> None:
        self._socket.close()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(10)
        self._socket.bind((self._source, 0))
        self._socket.connect(self._address)
        self._socket.sendall(self._start)
        self._socket.settimeout(0)

    def transfer(self) -> None:
        """Send one byte, or read 64 bytes. Raises OSError if the connection is closed."""
        if self.kind != "readers":
            self._socket.sendall(b"x")
        with suppress(BlockingIOError):
            if not self._socket.recv(64):
                raise ConnectionResetError

    def close(self) -> None:
        self._socket.close()


class SlowClients(threading.Thread):
    """All slow clients. A disconnected client connects again at once."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        super().__init__(daemon=True)
        post = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        kinds = {
            "headers": f"{post}X-Slow: ".encode(),
            "bodies": f"{post}Content-Length: 100000\r\n\r\n".encode(),
            "readers": f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        }
        names = list(kinds)
        self._clients = [
            SlowClient(kind, kinds[kind], address, f"127.2.{1 + number % 200}.1")
            for number in range(SLOW_CLIENTS)
            for kind in [names[number % len(names)]]
        ]
        self.connected = 0
        self.disconnects: Counter[str] = Counter()
        self._ended = threading.Event()

    def run(self) -> None:
        for client in self._clients:
            client.connect()
            self.connected += 1
        while not self._ended.wait(INTERVAL):
            for client in self._clients:
                try:
                    client.transfer()
                except OSError:
                    self.disconnects[client.kind] += 1
                    client.connect()

    def end(self) -> None:
        self._ended.set()
        self.join(30)
        for client in self._clients:
            client.close()


@contextmanager
def slow_clients(address: tuple[str, int], path: str) -> Iterator[SlowClients]:
    clients = SlowClients(address, path)
    clients.start()
    try:
        yield clients
    finally:
        clients.end()
