"""A TCP proxy that does what networks do: cut, hold, refuse, drop, lose an answer."""

from __future__ import annotations

import ctypes
import re
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 16
TIMEOUT = 30  # seconds in which what is sent is taken
TICK = 0.02  # seconds after which a thread looks whether it is still wanted

# "Return 0": the kernel drops each packet that comes for the socket, unacknowledged, as a firewall
# does. A filter of the socket's own needs no root and reaches nobody else (man 7 socket).
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)

SYNC = b"S\x00\x00\x00\x04"  # which ends what PostgreSQL does as one transaction

FORWARD, HOLD, TURN_AWAY = "forward", "hold", "turn away"


class Proxy:
    """In front of `target`; connections to `address` are carried to it, until told otherwise.

    `answered` tells of the bytes that came back since a request was sent whether what it asked for
    is done.
    """

    def __init__(
        self,
        target: tuple[str, int],
        answered: Callable[[bytes], bool] = bool,
    ) -> None:
        self._target = target
        self._answered = answered
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._needles: tuple[bytes, ...] = ()
        self._mode = FORWARD
        self._dropping = False
        self._keep_back = False
        self._closing = False
        self.delay = 0.0  # seconds that each request takes longer
        self.connects = 0  # how many were accepted
        self.lost: list[bytes] = []  # the answers that were kept back
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._stop_listening()
        self.cut()

    def forward(self) -> None:
        """End what was done: what was held goes on, what was dropped gets through again."""
        self._mode = FORWARD
        if self._dropping:
            self._dropping = False
            for each in self._sockets():
                with suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        if self._listener.fileno() == -1:
            self._listener = self._bind_again()
            self._listen()

    def hold(self) -> None:
        """Accept, and carry nothing either way: whoever is connected waits."""
        self._mode = HOLD

    def turn_away(self) -> None:
        """Accept, and reset at once."""
        self._mode = TURN_AWAY

    def refuse(self) -> None:
        """Listen no more: a connect is refused."""
        self._stop_listening()

    def drop(self) -> None:
        """Drop every packet that comes from clients: neither a connect nor a byte is answered."""
        self._dropping = True
        for each in self._sockets():
            with suppress(OSError):
                drop_all(each)

    def cut(self) -> None:
        """Reset every connection that there is."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.ended = True
        deadline = time.monotonic() + TIMEOUT
        while not self._connections.isdisjoint(connections) and time.monotonic() < deadline:
            time.sleep(TICK / 10)

    def lose_answer(self, *needles: bytes) -> None:
        """Of the next request that holds one of these bytes, forward it, but not its answer.

        When the answer is complete, and so what was asked for is done, the connection is reset.
        """
        with self._lock:
            self._needles = needles

    def lose_network(self, *needles: bytes) -> None:
        """After the next request that holds one of these bytes, drop every packet.

        Its Sync is kept back: PostgreSQL has done what it was asked, and not committed it.
        """
        self._keep_back = True
        self.lose_answer(*needles)

    @property
    def armed(self) -> bool:
        """Whether the request whose answer is to be lost is still to come."""
        return bool(self._needles)

    def sought(self, request: bytes) -> bool:
        """Whether this is the request whose answer is to be lost; only one is."""
        if not self._needles:
            return False
        with self._lock:
            found = any(needle in request for needle in self._needles)
            if found:
                self._needles = ()
            return found

    def cut_off(self, request: bytes) -> bytes:
        """The request whose answer is to be lost, as it is to be carried."""
        if not self._keep_back:
            return request
        self._keep_back = False
        self.drop()
        return request.removesuffix(SYNC)

    def _sockets(self) -> list[socket.socket]:
        with self._lock:
            return [self._listener, *(each.client for each in self._connections)]

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
        self._listener.close()

    def _bind_again(self) -> socket.socket:
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_server(self.address, backlog=1024)
            except OSError:  # somebody's outgoing connection has the port for the moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # it was closed
                return
            self.connects += 1
            connection = Connection(self, client)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._carry, args=[connection], daemon=True).start()

    def _carry(self, connection: Connection) -> None:
        try:
            if self._dropping:
                drop_all(connection.client)
            if self._mode == TURN_AWAY or self._closing:
                return
            if self._wait(connection):
                connection.open(self._target)
                while self._wait(connection) and connection.carry(self._answered):
                    pass
        except OSError:
            pass
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _wait(self, connection: Connection) -> bool:
        """Wait while connections are held; False if this one has ended."""
        while self._mode == HOLD and not (self._closing or connection.ended):
            time.sleep(TICK)
        return not (self._closing or connection.ended)


class Connection:
    """A client's connection, and the one to the target that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self.client = client
        self._server: socket.socket | None = None
        self._losing: bytes | None = None
        self._tail = b""
        self.ended = False
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def open(self, target: tuple[str, int]) -> None:
        self._server = socket.create_connection(target, TIMEOUT)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry(self, answered: Callable[[bytes], bool]) -> bool:
        """Carry what has come on either side; False at the end of the connection."""
        server = self._server
        assert server
        ready, _, _ = select.select([self.client, server], [], [], TICK)
        if self.client in ready:
            request = self.client.recv(CHUNK)
            if not request:
                return False
            if self._losing is None and self._proxy.sought(self._tail + request):
                self._losing = b""
                request = self._proxy.cut_off(request)
            self._tail = request[-64:]
            time.sleep(self._proxy.delay)
            server.sendall(request)
        if server in ready:
            answer = server.recv(CHUNK)
            if not answer:
                return False
            if self._losing is None:
                self.client.sendall(answer)
            else:
                self._losing += answer
                if answered(self._losing):
                    self._proxy.lost.append(self._losing)
                    return False
        return True

    def close(self) -> None:
        """Reset the client's side; the server's is closed."""
        # To linger for no time is to reset: nothing that is still in a buffer is sent.
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        if self._server:
            self._server.close()


def http_answered(answer: bytes) -> bool:
    """Whether the answer has its head, and a body as long as its Content-Length says."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def drop_all(each: socket.socket) -> None:
    # A sock_fprog: how many instructions, and where they are.
    instructions = ctypes.create_string_buffer(DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(instructions))
    each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def postgresql_answered(answer: bytes) -> bool:
    """Whether the answer ends with ReadyForQuery outside of a transaction: what was asked is done.

    PostgreSQL's message is a letter, the length of what follows, with its own four bytes, and that.
    """
    at = 0
    while len(answer) - at >= 5:
        kind, length = answer[at : at + 1], int.from_bytes(answer[at + 1 : at + 5])
        following = at + 1 + length
        if following == len(answer):
            return kind == b"Z" and answer[-1:] == b"I"
        at = following
    return False
