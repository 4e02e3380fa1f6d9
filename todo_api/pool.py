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

# How long all places may be taken and nobody be done, before who comes is turned away, in seconds:
# a stall that is shorter, such as a checkpoint's, costs time and no errors.
PATIENCE = 0.2

# A compute that was suspended takes connections this soon; what takes longer is an outage.
COLD_START = 2.5

# Between two attempts to connect during an outage, of one process.
PAUSE = 0.25

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

    def __init__(self) -> None:
        self._since: float | None = None
        self._turn = threading.Lock()
        self._over = threading.Event()

    def patience(self) -> float:
        """How long a request may hope for a connection, in seconds: not at all if at most 0."""
        since = self._since
        return math.inf if since is None else since + COLD_START - time.monotonic()

    def connect(self, attempt: Callable[[], C]) -> C:
        """The connection of the first attempt that succeeds. Once one has failed, one at a time.

        Raises the last attempt's psycopg.OperationalError when `give_up` is called.
        """
        try:
            return self._try(attempt)
        except psycopg.OperationalError as error:
            failure = error
        with self._turn:
            while self._since is None or not self._over.wait(PAUSE):
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


class Gate:
    """Fewer places than a worker has threads, so that one is free for what needs no database.

    Who finds them all taken waits for as long as one after the other is done with the database.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._well = True
        self._moved_at = 0.0
        self._left = threading.Condition()

    def enter(self) -> None:
        """Take a place. Raises TooManyRequests when all are taken and nothing moves for PATIENCE.

        Once a place was left by who was not served, taking it anew is no movement: until somebody
        is served, whoever finds no place is refused at once.
        """
        with self._left:
            while not self._free:
                patience = self._moved_at + PATIENCE - time.monotonic()
                if patience <= 0:
                    metrics.SHEDS.labels("gate").inc()
                    raise TooManyRequests("every place has been taken for too long")
                self._left.wait(patience)
            self._free -= 1
            if self._well:
                self._moved_at = time.monotonic()

    def leave(self, *, served: bool) -> None:
        with self._left:
            self._free += 1
            self._well = served
            if served:
                self._moved_at = time.monotonic()
            self._left.notify()


class Pool:
    """Connections to the database of `settings`; the first use opens it.

    A worker process makes its own, after the fork.
    """

    def __init__(self, settings: Settings) -> None:
        places = max(1, settings.web_threads - 1)
        self.request_timeout = settings.request_timeout
        self._watched = settings.metrics
        self._gate = Gate(places)
        self._outage = Outage()
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
            max_size=places,
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
        self._gate.enter()
        served = True
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
            served = False
            raise
        finally:
            self._gate.leave(served=served)

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
