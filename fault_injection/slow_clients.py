"""200 clients send a header, send a body or read an answer as slowly as they can, behind nginx.

The others do not notice: nearly all of their requests are answered, hardly later than without.
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

SLOW = 200
RATE = 50  # requests of the others in a second
SUCCESS = 0.999
TASKS = 100  # of 10,000 characters each: a page of 1 MiB, which no socket's buffer holds
BYTES_EVERY = 1.0  # seconds


class Limits(NamedTuple):
    """How often and for how many seconds it lasts, and how much later 99 of 100 answers may be.

    A short run is part of the tests, on machines that do much else at the same time.
    """

    rounds: int
    settling: float
    seconds: float
    times: float
    more: float


FULL = Limits(rounds=3, settling=5, seconds=20, times=2, more=0.005)
SHORT = Limits(rounds=1, settling=1, seconds=3, times=2, more=2.0)


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
        healthy = created.headers["location"]
        load(nginx.address, healthy, 1, rate=RATE)
        quiet, beside, hung_up = [], [], Counter[str]()
        for _ in range(limits.rounds):
            quiet.append(load(nginx.address, healthy, limits.seconds, rate=RATE))
            with crawling(nginx.address, path) as crawlers:
                wait_until(
                    lambda each=crawlers: each.connected == SLOW, "every slow client is there"
                )
                # The readers' pages, which are ordinary work, have been taken off gunicorn.
                load(nginx.address, healthy, limits.settling, rate=RATE)
                beside.append(load(nginx.address, healthy, limits.seconds, rate=RATE))
            hung_up += crawlers.hung_up
    statuses = sum((each.statuses for each in beside), Counter[int]())
    success = statuses[200] / statuses.total()
    # In turns, and the middle one: the machine's own ups and downs are longer than a round.
    usual, now = (
        statistics.median(percentile(99, each.of(200)) for each in loads)
        for loads in (quiet, beside)
    )
    print_figures(
        slow_clients=SLOW,
        **{f"hung_up_on_{kind}": count for kind, count in sorted(hung_up.items())},
        requests_beside_them=statuses.total(),
        answered=f"{success:.2%}",
        p99_without=f"{1000 * usual:.1f} ms",
        p99_beside_them=f"{1000 * now:.1f} ms",
    )
    assert success >= SUCCESS, statuses
    assert now <= limits.times * usual + limits.more


class Crawler:
    """A connection on which a client does one thing, a few bytes at a time."""

    def __init__(self, kind: str, begin: bytes, address: tuple[str, int], source: str) -> None:
        self.kind = kind
        self._begin = begin
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
        self._socket.sendall(self._begin)
        self._socket.settimeout(0)

    def crawl(self) -> None:
        """Send or read a little. OSError if the server has hung up."""
        if self.kind != "readers":
            self._socket.sendall(b"x")
        with suppress(BlockingIOError):
            if not self._socket.recv(64):
                raise ConnectionResetError

    def close(self) -> None:
        self._socket.close()


class Crawlers(threading.Thread):
    """All slow clients. Who is hung up on comes back at once."""

    def __init__(self, address: tuple[str, int], path: str) -> None:
        super().__init__(daemon=True)
        post = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        kinds = {
            "headers": f"{post}X-Slow: ".encode(),
            "bodies": f"{post}Content-Length: 100000\r\n\r\n".encode(),
            "readers": f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        }
        names = list(kinds)
        self._crawlers = [
            Crawler(kind, kinds[kind], address, f"127.2.{1 + number % 200}.1")
            for number in range(SLOW)
            for kind in [names[number % len(names)]]
        ]
        self.connected = 0
        self.hung_up: Counter[str] = Counter()
        self._ended = threading.Event()

    def run(self) -> None:
        for crawler in self._crawlers:
            crawler.connect()
            self.connected += 1
        while not self._ended.wait(BYTES_EVERY):
            for crawler in self._crawlers:
                try:
                    crawler.crawl()
                except OSError:
                    self.hung_up[crawler.kind] += 1
                    crawler.connect()

    def end(self) -> None:
        self._ended.set()
        self.join(30)
        for crawler in self._crawlers:
            crawler.close()


@contextmanager
def crawling(address: tuple[str, int], path: str) -> Iterator[Crawlers]:
    crawlers = Crawlers(address, path)
    crawlers.start()
    try:
        yield crawlers
    finally:
        crawlers.end()
