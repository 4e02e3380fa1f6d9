"""Connections that wait for their next request, and threads that wait for one of those."""

from __future__ import annotations

import os
import threading
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn.workers.gthread import TConn


class Arrivals:
    """Connections that wait. Whoever takes one, because something arrives on it, has it alone.

    One thread at a time looks at all of them, the others wait for their turn to: who leads serves
    what it has found itself, and another one leads ("Leader/Followers", Schmidt et al., 2000).
    """

    def __init__(self) -> None:
        self._selector = DefaultSelector()
        self._changing = threading.Lock()
        self._lead = threading.Lock()
        self._arrived: deque[TConn] = deque()
        # Readable for ever, once its other end is closed.
        self._ended, self._open = os.pipe()
        self._selector.register(self._ended, EVENT_READ)

    def put(self, conn: TConn, *, arrived: bool = False) -> None:
        """Let the connection wait; `arrived`, for its turn only: there is something already."""
        # It can be written to at once, so it comes next after what has arrived before.
        events = EVENT_READ | (EVENT_WRITE if arrived else 0)
        with self._changing:
            self._selector.register(conn.sock, events, conn)

    def take(self, seconds: float = -1) -> TConn | None:
        """The next one on which something arrives, or None: in so long, or with -1 sometimes."""
        if not self._lead.acquire(timeout=seconds):
            return None
        try:
            if not self._arrived:
                for key, _ in self._selector.select(None if seconds < 0 else seconds):
                    if key.data is not None and self.remove(key.data):
                        self._arrived.append(key.data)
            return self._arrived.popleft() if self._arrived else None
        finally:
            self._lead.release()

    def remove(self, conn: TConn) -> bool:
        """Let the connection wait no longer; False if somebody has taken it."""
        with self._changing:
            try:
                self._selector.unregister(conn.sock)
            except KeyError:
                return False
            return True

    def waiting(self) -> list[TConn]:
        """All that wait, on which nothing has arrived."""
        with self._changing:
            return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def end(self) -> None:
        """Let nobody wait any longer: from now on, `take` returns at once."""
        os.close(self._open)
