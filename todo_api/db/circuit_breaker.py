"""A circuit breaker for connects: retry one at a time, and refuse requests meanwhile."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import psycopg
import structlog

from todo_api.db.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from todo_api.metrics import Metrics


log = structlog.get_logger(__name__)


C = TypeVar("C", bound=Connection)


# A compute that was suspended takes connections this soon; what takes longer is an outage.
COLD_START = 2.5


# Seconds between two attempts to connect during an outage, of one process.
CONNECT_PAUSE = 0.25


ERROR_LENGTH = 200


class CircuitBreaker:
    """Whether the database takes connections, and the attempts until it does.

    The pool's own backoff doubles its pauses: after a minute without a database, it would take
    another minute to notice that it is back.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        cold_start: float = COLD_START,
        connect_pause: float = CONNECT_PAUSE,
    ) -> None:
        self._metrics = metrics
        self._cold_start = cold_start
        self._connect_pause = connect_pause
        self._since: float | None = None
        self._turn = threading.Lock()
        self._over = threading.Event()

    def patience(self) -> float:
        """How long a request may hope for a connection, in seconds: not at all if at most 0."""
        since = self._since
        return math.inf if since is None else since + self._cold_start - time.monotonic()

    def connect(self, attempt: Callable[[], C]) -> C:
        """The connection of the first attempt that succeeds. Once one has failed, one at a time.

        Raises the last attempt's psycopg.OperationalError when `give_up` is called.
        """
        try:
            return self._try(attempt)
        except psycopg.OperationalError as error:
            failure = error
        with self._turn:
            while self._since is None or not self._over.wait(self._connect_pause):
                try:
                    return self._try(attempt)
                except psycopg.OperationalError as error:
                    failure = error
        raise failure

    def _try(self, attempt: Callable[[], C]) -> C:
        began = time.monotonic()
        try:
            connection = attempt()
        except psycopg.OperationalError as error:
            self._metrics.connect_failures.inc()
            if self._since is None:
                self._since = began
                log.warning("database unreachable", error=str(error)[:ERROR_LENGTH])
            raise
        self._metrics.connections_opened.inc()
        since, self._since = self._since, None
        if since is not None:
            log.info("database reachable", after_s=round(time.monotonic() - since, 1))
        return connection

    def give_up(self) -> None:
        """Let no further attempt follow one that fails."""
        self._over.set()
