"""A client's connection to the worker."""

from __future__ import annotations

import socket
import time
from typing import Any

from todo_api.server.requests import StrictParser

# The limits of a lingering close. If the server closes a connection with unread bytes, TCP resets
# the connection, and the reset can reach the client before the response (RFC 9112, section 9.6).
LINGER_SECONDS = 2
LINGER_BYTES = 1024 * 1024


class Connection:
    """A client's connection.

    After `deadline` (time.monotonic), the main thread shuts the connection down: because it was
    idle, because its request took too long, or because the client did not close it.
    """

    def __init__(self, sock: socket.socket, peer: Any, local: Any, settings: Any) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.peer = peer
        self.local = local
        self.parser = StrictParser(settings, sock, peer)
        self.deadline = time.monotonic() + settings.keepalive
        self.unread_limit = LINGER_BYTES

    def has_input(self) -> bool:
        """Whether the client has sent bytes that no thread has read."""
        if self.parser.has_buffered_input():
            return True
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False
