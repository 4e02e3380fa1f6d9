"""A circuit breaker: after a failed connection attempt, retry one at a time and fail fast."""

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


# Seconds that a serverless database, suspended because it was idle, needs to start. A longer time
# without connections is an outage.
COLD_START = 2.5


# Seconds between two attempts of one process to connect during an outage.
CONNECT_PAUSE = 0.25


ERROR_LENGTH = 200


class CircuitBreaker:
    """Knows whether the database accepts connections, and retries until it does.

    The pool's own backoff doubles its pauses: after an outage of one minute, it would connect up to
    one minute late.
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
        self._unreachable_since: float | None = None
        self._turn = threading.Lock()
        self._given_up = threading.Event()

    def time_to_wait(self) -> float:
        """Return how many seconds a request may wait for a connection.

        Infinite while the database is reachable. In an outage, the rest of the cold start: 0 or
        negative when it is over.
        """
        since = self._unreachable_since
        return math.inf if since is None else since + self._cold_start - time.monotonic()

    def connect(self, attempt: Callable[[], C]) -> C:
        """Return the connection of the first attempt that succeeds.

        After an attempt has failed, one thread at a time makes the next ones. Raises the last
        attempt's psycopg.OperationalError when `give_up` is called.
        """
        try:
            return self._try(attempt)
        except psycopg.OperationalError as error:
            failure = error
        with self._turn:
            while self._unreachable_since is None or not self._given_up.wait(self._connect_pause):
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
            if self._unreachable_since is None:
                self._unreachable_since = began
                log.warning("database unreachable", error=str(error)[:ERROR_LENGTH])
            raise
        self._metrics.connections_opened.inc()
        since, self._unreachable_since = self._unreachable_since, None
        if since is not None:
            log.info("database reachable again", outage_s=round(time.monotonic() - since, 1))
        return connection

    def give_up(self) -> None:
        """Make no further attempt after the next one that fails."""
        self._given_up.set()
