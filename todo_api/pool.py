"""Where connections come from: bounded in number, in time, and in what waits for them."""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

from todo_api import metrics
from todo_api.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from todo_api.settings import Settings

log = structlog.get_logger(__name__)

C = TypeVar("C", bound=Connection)

# Seconds in which no request finishes while all slots are busy: the database is stalled then. A
# shorter stall, such as that of a checkpoint or of a busy disk, costs time and no error. It is less
# than a second, which is what probes usually wait: a request that waits for a slot may hold the
# last free thread, and /livez waits with it.
STALL_TIMEOUT = 0.8

# The same after a request has failed: long enough for the next one to show that all is well.
RETRY_TIMEOUT = 0.1

# A compute that was suspended takes connections this soon; what takes longer is an outage.
COLD_START = 2.5

# Seconds between two attempts to connect during an outage, of one process.
CONNECT_PAUSE = 0.25

ERROR_LENGTH = 200


class PooledConnection(Connection):
    """A connection that is opened however long it takes: see Outage.connect."""

    @classmethod
    def connect(cls, conninfo: str = "", *, outage: Outage, **kwargs: Any) -> PooledConnection:  # type: ignore[override]
        return outage.connect(lambda: super(PooledConnection, cls).connect(conninfo, **kwargs))


class Outage:
    """Whether the database takes connections, and the attempts until it does.

    The pool's own backoff doubles its pauses: after a minute without a database, it would take
    another minute to notice that it is back.
    """

    def __init__(
        self, *, cold_start: float = COLD_START, connect_pause: float = CONNECT_PAUSE
    ) -> None:
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
            metrics.CONNECT_FAILURES.inc()
            if self._since is None:
                self._since = began
                log.warning("database unreachable", error=str(error)[:ERROR_LENGTH])
            raise
        metrics.CONNECTIONS_OPENED.inc()
        since, self._since = self._since, None
        if since is not None:
            log.info("database reachable", after_s=round(time.monotonic() - since, 1))
        return connection

    def give_up(self) -> None:
        """Let no further attempt follow one that fails."""
        self._over.set()


class AdmissionLimiter:
    """Limits how many requests of a process use the database at a time.

    When all slots are busy, a request waits while other requests keep finishing. When none has
    finished for `stall_timeout` seconds, the database is stalled: the request that waits is refused
    (503), and each later one that finds no free slot at once, until a request finishes.

    A worker has one slot fewer than threads, so one thread is free for requests that need no
    database, such as /livez. A request that waits for a slot holds that thread: /livez waits for it
    once in a stall, for `stall_timeout` at most. A worker with a single thread has a single slot:
    no request is ever refused here, and /livez waits for the requests before it.
    """

    def __init__(
        self,
        slots: int,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        retry_timeout: float = RETRY_TIMEOUT,
    ) -> None:
        self._free_slots = slots
        self._stall_timeout = stall_timeout
        self._retry_timeout = retry_timeout
        self._has_failed = False
        self._stalled_at = 0.0
        self._slot_released = threading.Condition()

    @property
    def free_slots(self) -> int:
        return self._free_slots

    def acquire(self, deadline: float) -> None:
        """Take a slot, and wait for one until the database is stalled or `deadline` has come.

        Raises TooManyRequests if there is none then.
        """
        with self._slot_released:
            while not self._free_slots:
                seconds = min(self._stalled_at, deadline) - time.monotonic()
                if seconds <= 0:
                    metrics.SHEDS.labels("admission").inc()
                    raise TooManyRequests("all slots are busy")
                self._slot_released.wait(seconds)
            self._free_slots -= 1
            # A request that follows a failure proves nothing before it has finished.
            timeout = self._retry_timeout if self._has_failed else self._stall_timeout
            self._stalled_at = max(self._stalled_at, time.monotonic() + timeout)

    def release(self, *, succeeded: bool) -> None:
        """Give the slot back; `succeeded` tells whether the database has answered."""
        with self._slot_released:
            self._free_slots += 1
            self._has_failed = not succeeded
            if succeeded:
                self._stalled_at = time.monotonic() + self._stall_timeout
            self._slot_released.notify()


class Pool:
    """Connections to the database of `settings`; the first use opens it.

    A worker process makes its own, after the fork.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        cold_start: float = COLD_START,
    ) -> None:
        slots = max(1, settings.web_threads - 1)
        self.request_timeout = settings.request_timeout
        self._watched = settings.metrics
        self.admission = AdmissionLimiter(slots, stall_timeout=stall_timeout)
        self._outage = Outage(cold_start=cold_start)
        self._opening = threading.Lock()
        self._drained_at = 0.0
        self._pool: ConnectionPool[PooledConnection] = ConnectionPool(
            settings.database_url,
            connection_class=PooledConnection,
            kwargs={
                "outage": self._outage,
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
                    metrics.watch_pool(self._pool)

    def await_connection(self, seconds: float) -> None:
        """Wait until there is a connection, for so long at most."""
        with suppress(PoolTimeout), self._pool.connection(seconds):
            pass

    def close(self) -> None:
        """Close every connection; the pool cannot be opened again."""
        self._outage.give_up()
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
            patience = min(deadline - time.monotonic(), self._outage.patience())
            if patience <= 0:
                metrics.SHEDS.labels("outage").inc()
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
            metrics.CONNECTIONS_LOST.inc()
            if connection.opened_at > self._drained_at:
                self._drained_at = time.monotonic()
                self._pool.drain()
        self._pool.putconn(connection)
