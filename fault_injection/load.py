"""A load on one path, by clients with keep-alive connections from many addresses.

The clients are a separate process, so that other work of a scenario does not affect their times.
An open load sends requests at a constant rate, without a wait for responses. In a closed load,
each client sends its next request after the response to the previous one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from typing import NamedTuple

ADDRESSES = 64  # of the loopback network: nginx limits the requests of each address
NGINX_DETAIL = b"the service has too many requests"  # the 503 of deploy/nginx/todo-api/http.conf
RESPONSE_TIMEOUT = 20  # seconds


class Result(NamedTuple):
    """The result of a request: its response time in seconds, its status, and the sender.

    The status is 0 without a response. `is_from_nginx` is True if nginx has sent the response
    itself.
    """

    seconds: float
    status: int
    is_from_nginx: bool


class Load(NamedTuple):
    """The results of all requests of a load."""

    results: list[Result]
    duration: float

    @property
    def statuses(self) -> Counter[int]:
        return Counter(result.status for result in self.results)

    def seconds_of(self, status: int, *, is_from_nginx: bool = False) -> list[float]:
        """Return the response times of the requests with this status and sender."""
        return [
            result.seconds
            for result in self.results
            if (result.status, result.is_from_nginx) == (status, is_from_nginx)
        ]

    @property
    def goodput(self) -> float:
        """Return the number of responses with 200 per second."""
        return len(self.seconds_of(200)) / self.duration


def percentile(percent: int, seconds: list[float]) -> float:
    """Return the percentile, also of a single value; 0 for an empty list."""
    if len(seconds) < 2:
        return sum(seconds)
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def load(
    address: tuple[str, int], path: str, seconds: float, *, rate: float = 0, clients: int = 0
) -> Load:
    """Run a load on the path: an open one with this rate, or a closed one with these clients."""
    kind = ["--rate", str(rate)] if rate else ["--clients", str(clients)]
    process = subprocess.run(
        [sys.executable, "-m", "fault_injection.load", *map(str, (*address, path, seconds)), *kind],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + 3 * RESPONSE_TIMEOUT,
    )
    return Load([Result(*values) for values in json.loads(process.stdout)], seconds)


class Clients:
    """The clients, and the idle connections that they share."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._address = host, port
        self._path = path
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._opened = 0
        self.results: list[Result] = []

    async def request(self) -> None:
        """Send one request, on the connection that has been idle longest, and record its result."""
        started = time.monotonic()
        status, is_from_nginx = 0, False
        with suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                status, is_from_nginx = await self._exchange()
        self.results.append(Result(time.monotonic() - started, status, is_from_nginx))

    async def _exchange(self) -> tuple[int, bool]:
        reader, writer = self._idle.popleft() if self._idle else await self._open()
        try:
            request = (
                f"GET {self._path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {uuid.uuid4()}\r\n\r\n"
            )
            writer.write(request.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = head.partition("content-length: ")[2].partition("\r\n")[0]
            body = await reader.readexactly(int(length))
        except BaseException:
            writer.close()
            raise
        if "connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split(" ", 2)[1]), NGINX_DETAIL in body

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._opened += 1
        source = f"127.1.{1 + self._opened % ADDRESSES}.1"
        return await asyncio.open_connection(*self._address, local_addr=(source, 0))

    async def run_open(self, rate: float, seconds: float) -> None:
        """Send `rate` requests per second, and wait for the last response."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(started + number / rate - time.monotonic())
                group.create_task(self.request())

    async def run_closed(self, clients: int, seconds: float) -> None:
        """Run `clients` clients; each sends its next request after a response."""
        end = time.monotonic() + seconds

        async def run_client() -> None:
            while time.monotonic() < end:
                await self.request()

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(run_client())

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def main() -> None:
    """Run the load of the command line, and print each result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fault_injection.load", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--clients", type=int)
    arguments = parser.parse_args()
    clients = Clients(arguments.host, arguments.port, arguments.path)
    if arguments.rate:
        await clients.run_open(arguments.rate, arguments.seconds)
    else:
        await clients.run_closed(arguments.clients, arguments.seconds)
    clients.close()
    print(json.dumps(clients.results))


if __name__ == "__main__":
    asyncio.run(main())
