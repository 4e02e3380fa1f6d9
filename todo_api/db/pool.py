"""Database connections, bounded in number and in time, and in what waits for them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from todo_api.db.admission import STALL_TIMEOUT, AdmissionLimiter
from todo_api.db.circuit_breaker import COLD_START, CircuitBreaker
from todo_api.db.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from todo_api.metrics import Metrics
    from todo_api.settings import Settings


class PooledConnection(Connection):
    """A connection that is opened however long it takes: see CircuitBreaker.connect."""

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, circuit_breaker: CircuitBreaker, **kwargs: Any
    ) -> PooledConnection:
        return circuit_breaker.connect(
            lambda: super(PooledConnection, cls).connect(conninfo, **kwargs)
        )


class Pool:
    """Connections to the database of `settings`; the first use opens it.

    A worker process makes its own, after the fork.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        cold_start: float = COLD_START,
    ) -> None:
        slots = max(1, settings.web_threads - 1)
        self.metrics = metrics
        self.request_timeout = settings.request_timeout
        self._watched = settings.metrics
        self.admission = AdmissionLimiter(slots, metrics, stall_timeout=stall_timeout)
        self._circuit_breaker = CircuitBreaker(metrics, cold_start=cold_start)
        self._opening = threading.Lock()
        self._drained_at = 0.0
        self._pool: ConnectionPool[PooledConnection] = ConnectionPool(
            settings.database_url,
            connection_class=PooledConnection,
            kwargs={
                "circuit_breaker": self._circuit_breaker,
                "autocommit": True,
                "application_name": "todo-api",
                # Less than two seconds libpq does not take. A compute that wakes takes its time.
                "connect_timeout": max(2, round(settings.request_timeout)),
                # What was sent and is not even acknowledged: the network is gone.
                "tcp_user_timeout": round(settings.request_timeout * 1000),
            },
            # Prepared at the first run, or never where a pooler does not carry it.
            configure=partial(Connection.begin, prepares=settings.database_prepare),
            open=False,
            min_size=1,
            max_size=slots,
            # Poolers and firewalls close what is older than five minutes.
            max_lifetime=280,
        )

    def open(self) -> None:
        """Start connecting, without waiting for it. Opening twice is harmless."""
        with self._opening:
            if self._pool.closed:
                self._pool.open()
                if self._watched:
                    self.metrics.watch_pool(self._pool)

    def await_connection(self, seconds: float) -> None:
        """Wait until there is a connection, for so long at most."""
        with suppress(PoolTimeout), self._pool.connection(seconds):
            pass

    def close(self) -> None:
        """Close every connection; the pool cannot be opened again."""
        self._circuit_breaker.give_up()
        self._pool.close()

    @contextmanager
    def connection(self, deadline: float) -> Iterator[Connection]:
        """A connection, if there is one by `deadline`, by time.monotonic().

        Raises psycopg_pool's TooManyRequests or PoolTimeout if there is none to be had.
        """
        if self._pool.closed:
            self.open()
        self.admission.acquire(deadline)
        succeeded = True
        try:
            patience = min(deadline - time.monotonic(), self._circuit_breaker.patience())
            if patience <= 0:
                self.metrics.sheds.labels("outage").inc()
                raise PoolTimeout("the database takes no connections")
            connection = self._pool.getconn(patience)
            try:
                yield connection
            finally:
                self._return(connection)
        except psycopg.OperationalError:
            succeeded = False
            raise
        finally:
            self.admission.release(succeeded=succeeded)

    def _return(self, connection: PooledConnection) -> None:
        # Where something is still to come, or nothing can, the connection is of no more use. What
        # was opened before it is not likely to be: after a suspend, the whole pool is dead.
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            connection.close()
            self.metrics.connections_lost.inc()
            if connection.opened_at > self._drained_at:
                self._drained_at = time.monotonic()
                self._pool.drain()
        self._pool.putconn(connection)
