"""Clients with keep-alive connections, each from an address of its own, and how each was answered.

They are a process of their own, or what else a part does would be in their figures. Open: requests
come at a rate, whether or not the ones before were answered, as from people. Closed: each client
sends its next request when it has the answer to the one before.
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

ADDRESSES = 64  # of the loopback network: nginx counts the requests of each for itself
NGINX = b"There are more requests than can be answered now."  # deploy/nginx/todo-api/http.conf
PATIENCE = 20  # seconds in which an answer has to come


class Answered(NamedTuple):
    """A request: the seconds to its answer, the answer's status, and whether it is nginx's own.

    The status is 0 if there was no answer.
    """

    seconds: float
    status: int
    own: bool


class Load(NamedTuple):
    """What came of all requests of a load."""

    answers: list[Answered]
    duration: float

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answered.status for answered in self.answers)

    def of(self, status: int, *, own: bool = False) -> list[float]:
        """The seconds of those that were answered so, by the application or by nginx itself."""
        return [each.seconds for each in self.answers if (each.status, each.own) == (status, own)]

    @property
    def goodput(self) -> float:
        """How many were answered 200 in a second."""
        return len(self.of(200)) / self.duration


def percentile(part: int, seconds: list[float]) -> float:
    """The percentile of at least one; 0 if there is none."""
    if len(seconds) < 2:
        return sum(seconds)
    return statistics.quantiles(seconds, n=100, method="inclusive")[part - 1]


def load(
    address: tuple[str, int], path: str, seconds: float, *, rate: float = 0, clients: int = 0
) -> Load:
    """What came of a load on the path, at this rate or by so many clients."""
    how = ["--rate", str(rate)] if rate else ["--clients", str(clients)]
    done = subprocess.run(
        [sys.executable, "-m", "fault_injection.load", *map(str, (*address, path, seconds)), *how],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + 3 * PATIENCE,
    )
    return Load([Answered(*each) for each in json.loads(done.stdout)], seconds)


class Crowd:
    """The clients, and the connections on which none of them waits for an answer."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._address = host, port
        self._path = path
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._opened = 0
        self.answers: list[Answered] = []

    async def ask(self) -> None:
        """Send one request, on the connection that has rested longest, and note its answer."""
        begun = time.monotonic()
        status, own = 0, False
        with suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(PATIENCE):
                status, own = await self._exchange()
        self.answers.append(Answered(time.monotonic() - begun, status, own))

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
        return int(head.split(" ", 2)[1]), NGINX in body

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._opened += 1
        source = f"127.1.{1 + self._opened % ADDRESSES}.1"
        return await asyncio.open_connection(*self._address, local_addr=(source, 0))

    async def come(self, rate: float, seconds: float) -> None:
        """Send so many requests a second, and wait for the last answer."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(begun + number / rate - time.monotonic())
                group.create_task(self.ask())

    async def stay(self, clients: int, seconds: float) -> None:
        """Be so many clients for so many seconds."""
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.ask()

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())

    def leave(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def main() -> None:
    """Do what the command line says, and print each answer as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fault_injection.load", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--clients", type=int)
    told = parser.parse_args()
    crowd = Crowd(told.host, told.port, told.path)
    if told.rate:
        await crowd.come(told.rate, told.seconds)
    else:
        await crowd.stay(told.clients, told.seconds)
    crowd.leave()
    print(json.dumps(crowd.answers))


if __name__ == "__main__":
    asyncio.run(main())
