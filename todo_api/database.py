"""The one place that opens connections: a pool, and one statement as one user."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg import Connection
from psycopg.adapt import Loader
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg_pool import ConnectionPool
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg.abc import Buffer
    from sqlalchemy.sql import ClauseElement

    from todo_api.settings import Settings

Json: TypeAlias = bytes
Row: TypeAlias = tuple[Any, ...]

# The role that requests run as. It cannot log in and cannot bypass row-level security; whatever
# role the connection logged in as, a superuser included, a request drops to it.
APPLICATION_ROLE = "todo_app"

# All local to the transaction: nothing is left for the next user of a pooled connection.
ACT_AS_OWNER = f"""
    SELECT set_config('role', '{APPLICATION_ROLE}', true),
           set_config('todo.user_id', %(owner)s::text, true),
           set_config('statement_timeout', %(timeout)s, true)
""".encode()


@dataclass(frozen=True)
class Statement:
    """SQL with `%(name)s` placeholders; `owner` is always one that it may name."""

    sql: bytes


def compiled(statement: ClauseElement) -> Statement:
    """The Core statement as SQL, for good: compile at import, or once for each shape.

    Every parameter is given at each run: a value left in the statement is a ValueError.
    """
    compilation = statement.compile(dialect=PGDialect_psycopg())  # type: ignore[no-untyped-call]
    values = {name: value for name, value in compilation.params.items() if value is not None}
    if values:
        raise ValueError(f"Values in the statement instead of parameters: {sorted(values)}")
    return Statement(str(compilation).encode())


class JsonLoader(Loader):
    """JSON as PostgreSQL wrote it: it is passed on, not parsed."""

    def load(self, data: Buffer) -> Json:
        return bytes(data)


class Database:
    """A pool of connections to the database of `settings`; the first use opens it.

    A worker process makes its own, after the fork.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.request_timeout
        self._statement_timeout = str(round(settings.request_timeout * 1000))
        self._opening = threading.Lock()
        self._pool = ConnectionPool(
            settings.database_url,
            kwargs={
                "autocommit": True,
                "application_name": "todo-api",
                "connect_timeout": max(2, round(settings.request_timeout)),
                # Prepared at the first run, or never where a pooler does not carry them.
                "prepare_threshold": 0 if settings.database_prepare else None,
            },
            configure=configure,
            open=False,
            min_size=1,
            max_size=settings.web_threads,
            max_waiting=settings.web_threads,
            timeout=settings.request_timeout,
            # Poolers and firewalls close what is older than five minutes.
            max_lifetime=280,
        )

    def open(self) -> None:
        """Start connecting, without waiting for it. Opening twice is harmless."""
        with self._opening:
            if self._pool.closed:
                self._pool.open()

    def close(self) -> None:
        """Close every connection; the database cannot be opened again."""
        self._pool.close()

    def one(self, owner: UUID, statement: Statement, **parameters: Any) -> Row | None:
        """The first row of the statement, run as `owner`, or None if it has no row."""
        rows = self.all(owner, statement, **parameters)
        return rows[0] if rows else None

    def all(self, owner: UUID, statement: Statement, **parameters: Any) -> list[Row]:
        """Every row of the statement, run as `owner`, in one network round trip.

        Between two Syncs of a pipeline the two statements are one implicit transaction, so the
        settings hold for the second one and vanish with it (PostgreSQL, "Pipelining" in the
        chapter on the message flow). Raises psycopg.Error, and of psycopg_pool PoolTimeout or
        TooManyRequests when there is no connection to be had.
        """
        if self._pool.closed:
            self.open()
        try:
            return self._run(owner, statement, parameters)
        except (DeadlockDetected, SerializationFailure):
            return self._run(owner, statement, parameters)  # the server has rolled it back

    def _run(self, owner: UUID, statement: Statement, parameters: dict[str, Any]) -> list[Row]:
        connection = self._pool.getconn()
        try:
            with connection.pipeline():
                connection.execute(
                    ACT_AS_OWNER, {"owner": owner, "timeout": self._statement_timeout}
                )
                cursor = connection.execute(statement.sql, {"owner": owner, **parameters})
            return cursor.fetchall()
        finally:
            self._pool.putconn(connection)


def configure(connection: Connection[Row]) -> None:
    connection.adapters.register_loader("json", JsonLoader)
