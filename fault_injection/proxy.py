"""A TCP proxy that injects network faults: resets, delays, refusals, dropped packets, lost data."""

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
TIMEOUT = 30  # seconds for a connect or a write
TICK = 0.02  # seconds between two checks of a thread for the end of the proxy

# A packet filter with the single instruction "return 0". The kernel drops all packets of the socket
# without an acknowledgement, as a firewall does. It affects only this socket and needs no root
# (man 7 socket).
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)

SYNC = b"S\x00\x00\x00\x04"  # the message after which PostgreSQL commits

FORWARD, HOLD, ACCEPT_AND_RESET = "forward", "hold", "turn away"


class Proxy:
    """A proxy in front of `target`, which forwards connections to `address` until a fault begins.

    `is_complete` gets the bytes that `target` has sent after a request. It returns True if they are
    a complete response.
    """

    def __init__(
        self,
        target: tuple[str, int],
        is_complete: Callable[[bytes], bool] = bool,
    ) -> None:
        self._target = target
        self._is_complete = is_complete
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._patterns: tuple[bytes, ...] = ()
        self._mode = FORWARD
        self._dropping = False
        self._withhold_sync = False
        self._closing = False
        self.delay = 0.0  # seconds by which each request is delayed
        self.connects = 0  # the number of accepted connections
        self.lost: list[bytes] = []  # the responses that were not forwarded
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._stop_listening()
        self.reset_connections()

    def forward(self) -> None:
        """End all faults: waiting and dropped connections are forwarded again."""
        self._mode = FORWARD
        if self._dropping:
            self._dropping = False
            for dropping in self._sockets():
                with suppress(OSError):
                    dropping.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        if self._listener.fileno() == -1:
            self._listener = self._bind_again()
            self._listen()

    def hold(self) -> None:
        """Accept connections and forward nothing in either direction."""
        self._mode = HOLD

    def accept_and_reset(self) -> None:
        """Accept new connections and reset them at once."""
        self._mode = ACCEPT_AND_RESET

    def refuse(self) -> None:
        """Stop listening, so that the kernel refuses connects."""
        self._stop_listening()

    def drop_packets(self) -> None:
        """Drop all packets from clients: connects and data get no acknowledgement."""
        self._dropping = True
        for client in self._sockets():
            with suppress(OSError):
                drop_all(client)

    def reset_connections(self) -> None:
        """Reset all open connections, and wait until they are closed."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.ended = True
        deadline = time.monotonic() + TIMEOUT
        while not self._connections.isdisjoint(connections) and time.monotonic() < deadline:
            time.sleep(TICK / 10)

    def lose_response(self, *patterns: bytes) -> None:
        """Lose the response to the next request that contains one of the patterns.

        The request is forwarded. When its response is complete, the connection is reset.
        """
        with self._lock:
            self._patterns = patterns

    def lose_network(self, *patterns: bytes) -> None:
        """Drop all packets after the next request that contains one of the patterns.

        The request is forwarded without its Sync, so PostgreSQL executes it and does not commit.
        """
        self._withhold_sync = True
        self.lose_response(*patterns)

    @property
    def armed(self) -> bool:
        """Return True until a request has matched the patterns of `lose_response`."""
        return bool(self._patterns)

    def matches(self, request: bytes) -> bool:
        """Return True for the first request that contains one of the patterns."""
        if not self._patterns:
            return False
        with self._lock:
            has_pattern = any(pattern in request for pattern in self._patterns)
            if has_pattern:
                self._patterns = ()
            return has_pattern

    def prepare_request(self, request: bytes) -> bytes:
        """Return the request to forward, without its Sync if the network is to be lost."""
        if not self._withhold_sync:
            return request
        self._withhold_sync = False
        self.drop_packets()
        return request.removesuffix(SYNC)

    def _sockets(self) -> list[socket.socket]:
        with self._lock:
            return [self._listener, *(connection.client for connection in self._connections)]

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _stop_listening(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        self._listener.close()

    def _bind_again(self) -> socket.socket:
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_server(self.address, backlog=1024)
            except OSError:  # an outgoing connection uses the port for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(TICK)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # the listener is closed
                return
            self.connects += 1
            connection = Connection(self, client)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            if self._dropping:
                drop_all(connection.client)
            if self._mode == ACCEPT_AND_RESET or self._closing:
                return
            if self._wait(connection):
                connection.open(self._target)
                while self._wait(connection) and connection.forward(self._is_complete):
                    pass
        except OSError:
            pass
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _wait(self, connection: Connection) -> bool:
        """Wait while the mode is HOLD. Return False if the connection or the proxy has ended."""
        while self._mode == HOLD and not (self._closing or connection.ended):
            time.sleep(TICK)
        return not (self._closing or connection.ended)


class Connection:
    """The connection of a client, and its connection to the target."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self.client = client
        self._server: socket.socket | None = None
        self._withheld: bytes | None = None
        self._tail = b""
        self.ended = False
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def open(self, target: tuple[str, int]) -> None:
        self._server = socket.create_connection(target, TIMEOUT)
        self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def forward(self, is_complete: Callable[[bytes], bool]) -> bool:
        """Forward available data in both directions. Return False at the end of the connection."""
        server = self._server
        assert server
        ready, _, _ = select.select([self.client, server], [], [], TICK)
        if self.client in ready:
            request = self.client.recv(CHUNK)
            if not request:
                return False
            if self._withheld is None and self._proxy.matches(self._tail + request):
                self._withheld = b""
                request = self._proxy.prepare_request(request)
            self._tail = request[-64:]
            time.sleep(self._proxy.delay)
            server.sendall(request)
        if server in ready:
            response = server.recv(CHUNK)
            if not response:
                return False
            if self._withheld is None:
                self.client.sendall(response)
            else:
                self._withheld += response
                if is_complete(self._withheld):
                    self._proxy.lost.append(self._withheld)
                    return False
        return True

    def close(self) -> None:
        """Reset the client's connection, and close the connection to the target."""
        # With a linger time of 0, close() resets the connection and discards its buffers.
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        if self._server:
            self._server.close()


def is_complete_http_response(response: bytes) -> bool:
    """Return True if the response has its head, and a body as long as its Content-Length."""
    head, end, body = response.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def drop_all(receiver: socket.socket) -> None:
    """Let the kernel drop all packets that arrive for the socket."""
    # The struct sock_fprog: the number of instructions, and their address.
    instructions = ctypes.create_string_buffer(DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(instructions))
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def is_complete_postgresql_response(response: bytes) -> bool:
    """Return True if the response ends with a ReadyForQuery outside of a transaction.

    A message has its kind in one byte, its length without this byte in four bytes, and its content.
    """
    start = 0
    while len(response) - start >= 5:
        kind, length = response[start : start + 1], int.from_bytes(response[start + 1 : start + 5])
        end = start + 1 + length
        if end == len(response):
            return kind == b"Z" and response[-1:] == b"I"
        start = end
    return False
