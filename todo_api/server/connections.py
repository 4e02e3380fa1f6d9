"""A client's connection to the worker."""

from __future__ import annotations

import socket
import time
from typing import Any

from todo_api.server.requests import StrictParser

# Limits of a lingering close. If a connection is closed while received bytes are unread, TCP resets
# it, and the reset can reach the client before the response (RFC 9112, section 9.6).
LINGER_SECONDS = 2
LINGER_BYTES = 1024 * 1024


class Connection:
    """A client's connection.

    At `deadline` (time.monotonic), the main thread shuts the connection down: if it is idle, if its
    request takes too long, or if the client does not close it.
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
