"""Client connections that end at any time: without a request, within one, or after its response.

One thread opens hundreds of them. A random generator chooses the behaviour of each connection.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fault_injection.worker_state import CLOSE_TIMEOUT, RESPONSE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

# Values of SO_LINGER: whether it is on, and its seconds.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
NO_LINGER = struct.pack("ii", 0, 0)

BODY = b'{"title": "Buy oat milk"}'
POST = b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
TASKS = b"/api/5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10/tasks"

# Each request, and the statuses that its response may have: 503 if all slots are busy.
GETS = {
    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n": {200},
    b"GET /no-such-path HTTP/1.1\r\nHost: a\r\n\r\n": {404},
}
POSTS = {
    b"POST /livez" + POST % (len(BODY), BODY): {405},  # the application does not read the body
    b"POST " + TASKS + POST % (len(BODY), BODY): {201, 503},
}
REQUESTS = GETS | POSTS

# Seconds. The server must not close a connection with a request within MIN_IDLE of its start or its
# last response. Later, on a machine that stalls, the server can see an expired keep-alive timeout;
# then the client sends its request again (RFC 9112, section 9.3.1).
KEEP_ALIVE = 1
MIN_IDLE = 0.6 * KEEP_ALIVE
MAX_RETRIES = 5  # of one request

# The maximum time in seconds for which a request stays incomplete: it occupies a thread.
MAX_INCOMPLETE = 0.02


class Response(NamedTuple):
    status: int
    is_last: bool  # the response announces that the server closes the connection


class Connection:
    """A non-blocking connection of a client."""

    def __init__(self, connected_socket: socket.socket) -> None:
        self.socket = connected_socket
        self.used_at = time.monotonic()
        self._received = b""

    @classmethod
    def open(cls, address: tuple[str, int], source: str) -> Connection:
        """Connect. This blocks for microseconds, or longer if the server's backlog is full."""
        new_socket = socket.socket()
        try:
            new_socket.settimeout(RESPONSE_TIMEOUT)
            # Closing the socket resets the connection, so hundreds of resets need milliseconds.
            # `close` switches this off.
            new_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            new_socket.bind((source, 0))
            new_socket.connect(address)
            new_socket.settimeout(0)
        except BaseException:
            new_socket.close()
            raise
        return cls(new_socket)

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the server has closed it: the next read fails, too
            size = self.socket.send(data)
            assert size == len(data), "The socket's buffer is full."

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def read_response(self) -> Response:
        """Return the next response. Raises EOFError or OSError if the server closes too early."""
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            while (size := response_size(self._received)) is None:
                data = await self._receive()
                if not data:
                    raise EOFError(f"closed after {self._received[:200]!r}")
                self._received += data
        response, self._received = self._received[:size], self._received[size:]
        self.used_at = time.monotonic()
        head = response.partition(b"\r\n\r\n")[0].lower()
        return Response(int(head.split(b" ", 2)[1]), b"\r\nconnection: close" in head)

    async def await_close(self) -> None:
        """Wait until the server closes or resets the connection, for CLOSE_TIMEOUT at most."""
        with suppress(ConnectionError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while await self._receive():
                    pass

    def half_close(self) -> None:
        with suppress(OSError):  # the connection has been reset
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.socket.close()


def response_size(received: bytes) -> int | None:
    """Return the size of the first response in bytes, or None if it is incomplete."""
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        return None
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return len(head) + len(end) + length if len(rest) >= length else None


class Traffic:
    """A round of connections from one address, with counts of their actions and all failures."""

    def __init__(self, address: tuple[str, int], source: str, random: Random) -> None:
        self._address = address
        self._source = source
        self._random = random
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    async def run(self, mixed: int, idle: int, seconds: float) -> None:
        """Open `mixed` connections within `seconds`, and `idle` ones that are reset together."""
        kinds = [
            ("complete", self._send_complete),
            ("complete", self._send_complete),
            ("incomplete", self._send_incomplete),
            ("incomplete", self._send_incomplete),
            ("abandoned", self._abandon),
            ("silent", self._send_nothing),
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._record("idle", partial(self._reset_together, idle), 0))
            for _ in range(mixed):
                name, behaviour = self._random.choice(kinds)
                delay = self._random.uniform(0, seconds)
                group.create_task(self._record(name, behaviour, delay))

    async def _record(
        self, name: str, behaviour: Callable[[], Awaitable[None]], delay: float
    ) -> None:
        """Run one behaviour after a delay. Record its failure; the others continue."""
        await asyncio.sleep(delay)
        try:
            await behaviour()
        except (AssertionError, EOFError, OSError) as error:
            self.failures.append(f"{name}: {error!r}")

    def _open(self) -> Connection:
        connection = Connection.open(self._address, self._source)
        self.counts["connections"] += 1
        return connection

    def _requests(self) -> list[bytes]:
        """Return one to four requests, mostly without a body."""
        weighted = [GETS, GETS, GETS, POSTS]
        return [
            self._random.choice(list(self._random.choice(weighted)))
            for _ in range(self._random.choice((1, 1, 2, 4)))
        ]

    async def _send_complete(self) -> None:
        """Send pipelined requests in two pieces; each request gets a response."""
        connection = self._open()
        requests = self._requests()
        data = b"".join(requests)
        middle = self._random.randrange(len(data))
        for piece in filter(None, (data[:middle], data[middle:])):
            connection.send(piece)
            await asyncio.sleep(self._random.choice((0, 0, MAX_INCOMPLETE / 4)))
        is_half_closed = self._random.random() < 0.2
        if is_half_closed:
            connection.half_close()
        await self._expect(connection, requests)
        await (self._await_close(connection) if is_half_closed else self._end(connection))

    async def _send_incomplete(self) -> None:
        """Send a part of a request, sometimes after complete requests."""
        connection = self._open()
        requests = self._requests() if self._random.random() < 0.3 else []
        last = self._random.choice(list(REQUESTS))
        middle = self._random.randrange(1, len(last))
        connection.send(b"".join(requests) + last[:middle])
        self.counts["incomplete requests"] += 1
        await self._expect(connection, requests)
        await asyncio.sleep(self._random.uniform(0, MAX_INCOMPLETE))
        if not requests and self._random.random() < 0.3:
            connection.send(last[middle:])
            await self._expect(connection, [last])
        await self._end(connection, may_stay=False)

    async def _abandon(self) -> None:
        """Send complete requests, and close or reset without a wait for the responses."""
        connection = self._open()
        connection.send(b"".join(self._requests()))
        await asyncio.sleep(self._random.choice((0, 0, 0.002)))
        await self._end(connection, may_stay=False, may_wait=False)

    async def _send_nothing(self) -> None:
        """Send nothing."""
        connection = self._open()
        await asyncio.sleep(self._random.choice((0, 0.01, 0.3)))
        await self._end(connection)

    async def _reset_together(self, count: int) -> None:
        """Reset most of these idle connections while the server closes the first of them.

        The server has to close the others. A quarter of the connections have sent a request. The
        server closes connections in the order in which they were opened, so a reset of the later
        half first hits most connections before the server closes them.
        """
        # All are opened at the same time, so that their keep-alive timeouts end at the same time.
        idle = [self._open() for _ in range(count)]
        await self._request_on(idle[-count // 4 :])
        half = count // 2
        if self._random.random() < 0.5:
            idle = idle[half:] + idle[:half]
        else:
            self._random.shuffle(idle)
        not_reset = [idle.pop() for _ in range(count // 10)]
        pause = self._random.choice((0, 0, 0.0003))  # after each tenth connection
        await self._await_first_close(idle)
        for number, connection in enumerate(idle):
            connection.reset()
            if pause and number % 10 == 0:
                await asyncio.sleep(pause)
        self.counts["resets"] += len(idle)
        for connection in not_reset:
            await self._await_close(connection)

    async def _request_on(self, connections: Sequence[Connection]) -> None:
        """Send a request on each of the connections, then read the responses."""
        request = next(iter(GETS))
        for connection in connections:
            connection.send(request)
        for connection in connections:
            await self._expect(connection, [request])

    async def _await_first_close(self, idle: Sequence[Connection]) -> None:
        """Wait until the server closes one of these; return within a millisecond after it."""
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        closing = asyncio.Event()
        # One epoll descriptor stands for all connections. To remove hundreds of readers from the
        # loop would take milliseconds, in which the server closes the other connections.
        with select.epoll() as poller:
            for connection in idle:
                poller.register(connection.socket, select.EPOLLIN)
            loop.add_reader(poller, closing.set)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await closing.wait()
            finally:
                loop.remove_reader(poller)
        self.counts["ms until an idle one is closed"] += round(1e3 * (time.monotonic() - started))

    async def _expect(self, connection: Connection, requests: Sequence[bytes]) -> None:
        """Read the responses; if the server closes first, retry the rest on other connections."""
        self.counts["complete requests"] += len(requests)
        without_response = await self._read_responses(connection, requests)
        for request in without_response:
            await self._retry(request)

    async def _retry(self, request: bytes) -> None:
        for _ in range(MAX_RETRIES):
            self.counts["retries"] += 1
            connection = self._open()
            connection.send(request)
            without_response = await self._read_responses(connection, [request])
            connection.close()
            if not without_response:
                return
        raise AssertionError(f"No response after {MAX_RETRIES} retries: {request!r}")

    async def _read_responses(
        self, connection: Connection, requests: Sequence[bytes]
    ) -> Sequence[bytes]:
        """Return the requests without a response, if the server was allowed to close early."""
        for number, request in enumerate(requests):
            try:
                response = await connection.read_response()
            except (EOFError, ConnectionResetError):
                if time.monotonic() - connection.used_at < MIN_IDLE:
                    raise
                self.counts["closed as idle"] += 1
                return requests[number:]
            assert response.status in REQUESTS[request], (request, response)
            self.counts["responses"] += 1
            if response.is_last:
                return requests[number + 1 :]
        return ()

    async def _end(
        self, connection: Connection, *, may_stay: bool = True, may_wait: bool = True
    ) -> None:
        """Reset, close or half close the connection, or wait until the server closes it."""
        actions = ["reset", "close"] + ["half close"] * may_wait + ["stay"] * may_stay
        action = self._random.choice(actions)
        if action == "reset":
            connection.reset()
            self.counts["resets"] += 1
        elif action == "close":
            connection.close()
        else:
            if action == "half close":
                connection.half_close()
            await self._await_close(connection)

    async def _await_close(self, connection: Connection) -> None:
        """Wait until the server closes the connection, then close it."""
        try:
            await connection.await_close()
        except TimeoutError:
            raise AssertionError(f"Still open after {CLOSE_TIMEOUT} s.") from None
        finally:
            connection.close()
