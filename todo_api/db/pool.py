"""A connection pool with limits on connections, their lifetime, and waiting requests."""

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
    """A connection that the circuit breaker opens."""

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, circuit_breaker: CircuitBreaker, **kwargs: Any
    ) -> PooledConnection:
        return circuit_breaker.connect(
            lambda: super(PooledConnection, cls).connect(conninfo, **kwargs)
        )


class Pool:
    """Connections to the database of `settings`, opened at the first use.

    Each worker opens its own connections after the fork.
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
        self.quotas = {
            "max_tasks": str(settings.max_tasks),
            "max_bytes": str(settings.max_bytes),
        }
        self._reports_metrics = settings.metrics
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
                # Seconds; libpq's minimum is 2. The value is not smaller than the request timeout,
                # because a suspended serverless database needs time to start.
                "connect_timeout": max(2, round(settings.request_timeout)),
                # Milliseconds. The connection ends if sent data are not acknowledged for this time.
                "tcp_user_timeout": round(settings.request_timeout * 1000),
            },
            configure=partial(Connection.set_up, prepares=settings.database_prepare),
            open=False,
            min_size=1,
            max_size=slots,
            # Seconds. Poolers and firewalls close connections that are older than five minutes.
            max_lifetime=280,
        )

    def open(self) -> None:
        """Begin to connect, without waiting. A second call has no effect."""
        with self._opening:
            if self._pool.closed:
                self._pool.open()
                if self._reports_metrics:
                    self.metrics.watch_pool(self._pool)

    def await_connection(self, seconds: float) -> None:
        """Wait for a connection, for at most `seconds`."""
        with suppress(PoolTimeout), self._pool.connection(seconds):
            pass

    def close(self) -> None:
        """Close all connections. The pool cannot be opened again."""
        self._circuit_breaker.give_up()
        self._pool.close()

    @contextmanager
    def connection(self, deadline: float) -> Iterator[Connection]:
        """Yield a connection; wait for one until `deadline` (time.monotonic).

        Raises psycopg_pool's TooManyRequests if the admission limiter refuses the request, and
        PoolTimeout if no connection is available in time or the circuit breaker is open.
        """
        if self._pool.closed:
            self.open()
        self.admission.acquire(deadline)
        succeeded = True
        try:
            seconds = min(deadline - time.monotonic(), self._circuit_breaker.time_to_wait())
            if seconds <= 0:
                self.metrics.refused_requests.labels("outage").inc()
                raise PoolTimeout("the database accepts no connections")
            connection = self._pool.getconn(seconds)
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
        # Close a connection that is broken or has a pending result. Replace all other connections,
        # too: they are probably broken, because a suspended database closes all its connections.
        if connection.pgconn.transaction_status != TransactionStatus.IDLE:
            connection.close()
            self.metrics.connections_lost.inc()
            if connection.opened_at > self._drained_at:
                self._drained_at = time.monotonic()
                self._pool.drain()
        self._pool.putconn(connection)
