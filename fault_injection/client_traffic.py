"""Client connections that end at any time: silent, half sent, reset, half closed, or answered.

They are opened by the hundred, in one thread; a random generator decides what each of them does.
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

from fault_injection.worker_state import ANSWER_TIMEOUT, CLOSE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

# Of SO_LINGER: whether it is on, and seconds.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
NO_LINGER = struct.pack("ii", 0, 0)

BODY = b'{"title": "Buy oat milk"}'
POST = b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
TASKS = b"/api/5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10/tasks"

# A request, and the statuses that it may be answered with. The database may have no slot free.
GETS = {
    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n": {200},
    b"GET /no-such-path HTTP/1.1\r\nHost: a\r\n\r\n": {404},
}
POSTS = {
    b"POST /livez" + POST % (len(BODY), BODY): {405},  # its body is never read
    b"POST " + TASKS + POST % (len(BODY), BODY): {201, 503},
}
REQUESTS = GETS | POSTS

# Seconds. It is a fault if the server closes a connection with a request sooner than EARLY after it
# was opened or answered. Later, on a machine that stalls, the keep-alive timeout may have passed as
# the server measures it: the client repeats its request (RFC 9112, section 9.3.1).
KEEP_ALIVE = 1
EARLY = 0.6 * KEEP_ALIVE
MAX_REPEATS = 5  # of one request

# Seconds at most that a connection is half sent, which holds a thread.
HALF_SENT = 0.02


class Answer(NamedTuple):
    status: int
    is_last: bool  # the server says that it closes the connection


class Connection:
    """A non-blocking connection of a client."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.used_at = time.monotonic()
        self._received = b""

    @classmethod
    def open(cls, address: tuple[str, int], source: str) -> Connection:
        """Connect, which takes the kernel microseconds unless the server's backlog is full."""
        opened = socket.socket()
        try:
            opened.settimeout(ANSWER_TIMEOUT)
            # A close resets the connection, unless `close` says otherwise: several
            # hundred are reset within milliseconds.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            opened.bind((source, 0))
            opened.connect(address)
            opened.settimeout(0)
        except BaseException:
            opened.close()
            raise
        return cls(opened)

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # closed by the server: the next read says so
            sent = self.socket.send(data)
            assert sent == len(data), "The socket's buffer is full."

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def read_answer(self) -> Answer:
        """Return the next whole answer. EOFError or OSError if the server closes before its end."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            while (size := answer_size(self._received)) is None:
                data = await self._receive()
                if not data:
                    raise EOFError(f"closed after {self._received[:200]!r}")
                self._received += data
        answer, self._received = self._received[:size], self._received[size:]
        self.used_at = time.monotonic()
        head = answer.partition(b"\r\n\r\n")[0].lower()
        return Answer(int(head.split(b" ", 2)[1]), b"\r\nconnection: close" in head)

    async def await_close(self) -> None:
        """Wait until the server closes or resets the connection, for CLOSE_TIMEOUT at most."""
        with suppress(ConnectionError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while await self._receive():
                    pass

    def half_close(self) -> None:
        with suppress(OSError):  # reset since
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.socket.close()


def answer_size(received: bytes) -> int | None:
    """Return the bytes of the first answer, or None if it is not whole."""
    head, end, rest = received.partition(b"\r\n\r\n")
    if not end:
        return None
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return len(head) + len(end) + length if len(rest) >= length else None


class Traffic:
    """A round of connections from one address, the counts of what they did, and what failed."""

    def __init__(self, address: tuple[str, int], source: str, random: Random) -> None:
        self._address = address
        self._source = source
        self._random = random
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    async def run(self, mixed: int, idle: int, seconds: float) -> None:
        """Open `mixed` connections over so many seconds, beside `idle` ones that are reset."""
        kinds = [
            ("whole", self._send_whole),
            ("whole", self._send_whole),
            ("cut", self._send_part),
            ("cut", self._send_part),
            ("abrupt", self._leave_early),
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
        """Run one behaviour after a delay; note its failure, and let the others go on."""
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
        some = [GETS, GETS, GETS, POSTS]
        return [
            self._random.choice(list(self._random.choice(some)))
            for _ in range(self._random.choice((1, 1, 2, 4)))
        ]

    async def _send_whole(self) -> None:
        """Send requests, pipelined and in pieces; each is answered."""
        connection = self._open()
        requests = self._requests()
        sent = b"".join(requests)
        at = self._random.randrange(len(sent))
        for piece in filter(None, (sent[:at], sent[at:])):
            connection.send(piece)
            await asyncio.sleep(self._random.choice((0, 0, HALF_SENT / 4)))
        is_half_closed = self._random.random() < 0.2
        if is_half_closed:
            connection.half_close()
        await self._expect(connection, requests)
        await (self._await_close(connection) if is_half_closed else self._end(connection))

    async def _send_part(self) -> None:
        """Send a part of a head or of a body, perhaps after whole requests."""
        connection = self._open()
        requests = self._requests() if self._random.random() < 0.3 else []
        last = self._random.choice(list(REQUESTS))
        at = self._random.randrange(1, len(last))
        connection.send(b"".join(requests) + last[:at])
        self.counts["half sent"] += 1
        await self._expect(connection, requests)
        await asyncio.sleep(self._random.uniform(0, HALF_SENT))
        if not requests and self._random.random() < 0.3:
            connection.send(last[at:])
            await self._expect(connection, [last])
        await self._end(connection, may_stay=False)

    async def _leave_early(self) -> None:
        """Send whole requests, and leave before they are answered."""
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

        The server has to close those that are left. A quarter waits for a second request. The
        server closes connections in the order in which they came: it meets most resets ahead of it
        if the later half is reset first.
        """
        # At once, so that the keep-alive timeout of all of them passes at once.
        idle = [self._open() for _ in range(count)]
        await self._ask(idle[-count // 4 :])
        half = count // 2
        if self._random.random() < 0.5:
            idle = idle[half:] + idle[:half]
        else:
            self._random.shuffle(idle)
        kept = [idle.pop() for _ in range(count // 10)]
        pause = self._random.choice((0, 0, 0.0003))  # after each tenth connection
        await self._await_first_close(idle)
        for number, connection in enumerate(idle):
            connection.reset()
            if pause and number % 10 == 0:
                await asyncio.sleep(pause)
        self.counts["resets"] += len(idle)
        for connection in kept:
            await self._await_close(connection)

    async def _ask(self, connections: Sequence[Connection]) -> None:
        """Send a request on each of the connections, then read the answers."""
        request = next(iter(GETS))
        for connection in connections:
            connection.send(request)
        for connection in connections:
            await self._expect(connection, [request])

    async def _await_first_close(self, idle: Sequence[Connection]) -> None:
        """Wait until the server closes one of these, and return within a millisecond of it."""
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        closing = asyncio.Event()
        # One descriptor for all of them: to remove as many from the loop takes milliseconds, in
        # which the server closes the others.
        with select.epoll() as watched:
            for connection in idle:
                watched.register(connection.socket, select.EPOLLIN)
            loop.add_reader(watched, closing.set)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await closing.wait()
            finally:
                loop.remove_reader(watched)
        self.counts["ms until an idle one is closed"] += round(1e3 * (time.monotonic() - begun))

    async def _expect(self, connection: Connection, requests: Sequence[bytes]) -> None:
        """Read the answers; repeat on other connections what this one was closed before."""
        self.counts["whole requests"] += len(requests)
        unanswered = await self._read_answers(connection, requests)
        for request in unanswered:
            await self._repeat(request)

    async def _repeat(self, request: bytes) -> None:
        for _ in range(MAX_REPEATS):
            self.counts["repeated"] += 1
            connection = self._open()
            connection.send(request)
            unanswered = await self._read_answers(connection, [request])
            connection.close()
            if not unanswered:
                return
        raise AssertionError(f"Not answered after {MAX_REPEATS} times: {request!r}")

    async def _read_answers(
        self, connection: Connection, requests: Sequence[bytes]
    ) -> Sequence[bytes]:
        """Return the requests that the server may leave unanswered: it closed the connection."""
        for number, request in enumerate(requests):
            try:
                answer = await connection.read_answer()
            except (EOFError, ConnectionResetError):
                if time.monotonic() - connection.used_at < EARLY:
                    raise
                self.counts["closed as idle"] += 1
                return requests[number:]
            assert answer.status in REQUESTS[request], (request, answer)
            self.counts["answered"] += 1
            if answer.is_last:
                return requests[number + 1 :]
        return ()

    async def _end(
        self, connection: Connection, *, may_stay: bool = True, may_wait: bool = True
    ) -> None:
        """Reset, close or half close, or leave it to the server."""
        ends = ["reset", "close"] + ["half close"] * may_wait + ["stay"] * may_stay
        end = self._random.choice(ends)
        if end == "reset":
            connection.reset()
            self.counts["resets"] += 1
        elif end == "close":
            connection.close()
        else:
            if end == "half close":
                connection.half_close()
            await self._await_close(connection)

    async def _await_close(self, connection: Connection) -> None:
        """Wait for the server to close, then close."""
        try:
            await connection.await_close()
        except TimeoutError:
            raise AssertionError(f"Still open after {CLOSE_TIMEOUT} s.") from None
        finally:
            connection.close()
