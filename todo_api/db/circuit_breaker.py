"""A circuit breaker: after a failed connection attempt, try one at a time and fail fast."""

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


# Seconds that a serverless database needs to start after a suspension. While this time has not
# passed since the first failed attempt, requests wait for a connection; later, they fail at once.
COLD_START = 2.5


# Seconds between two connection attempts of one process during an outage.
CONNECT_PAUSE = 0.25


ERROR_LENGTH = 200


class CircuitBreaker:
    """Knows whether the database accepts connections, and connects again after an outage.

    psycopg_pool doubles the pause after each failed attempt: after an outage of one minute, it
    would connect up to one minute late.
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
        self._retry_lock = threading.Lock()
        self._given_up = threading.Event()

    def time_to_wait(self) -> float:
        """Return how many seconds a request may wait for a connection.

        The result is infinite while the database is reachable. After a failed attempt, it is the
        rest of COLD_START, and 0 or negative when that time has passed.
        """
        since = self._unreachable_since
        return math.inf if since is None else since + self._cold_start - time.monotonic()

    def connect(self, attempt: Callable[[], C]) -> C:
        """Return the connection of the first attempt that succeeds.

        After a failed attempt, one thread at a time makes the next attempts. After a call of
        `give_up`, raises the psycopg.OperationalError of the last attempt.
        """
        try:
            return self._try(attempt)
        except psycopg.OperationalError as error:
            failure = error
        with self._retry_lock:
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
        """After the next failed attempt, stop connecting."""
        self._given_up.set()
