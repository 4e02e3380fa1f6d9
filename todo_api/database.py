"""The one place that opens connections: a pool, and one statement as one user."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from psycopg import Connection
from psycopg.adapt import Loader
from psycopg.errors import DeadlockDetected, SerializationFailure, UniqueViolation
from psycopg_pool import ConnectionPool
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from psycopg.abc import Buffer
    from sqlalchemy.sql import ClauseElement
    from sqlalchemy.sql.compiler import SQLCompiler

    from todo_api.settings import Settings

Json: TypeAlias = bytes
Row: TypeAlias = tuple[Any, ...]

# The role that requests run as. It cannot log in and cannot bypass row-level security; whatever
# role the connection logged in as, a superuser included, a request drops to it.
APPLICATION_ROLE = "todo_app"

# The role that purges: it sees nothing but what has been in the trash for long enough.
MAINTENANCE_ROLE = "todo_maintenance"

# All local to the transaction: nothing is left for the next user of a pooled connection. A plan
# that knows the values sorts a small user's tasks where the generic one reads them off an index.
ACT_AS_OWNER = f"""
    SELECT set_config('role', '{APPLICATION_ROLE}', true),
           set_config('todo.user_id', %(owner)s::text, true),
           set_config('statement_timeout', %(timeout)s, true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
""".encode()


# The server has undone what was sent, for another was faster: it can be sent again, once.
ROLLED_BACK = (DeadlockDetected, SerializationFailure, UniqueViolation)


@dataclass(frozen=True)
class Statement:
    """SQL with `%(name)s` placeholders; `owner` is always one that it may name."""

    sql: bytes


def compiled(statement: ClauseElement) -> Statement:
    """The Core statement as SQL, for good: compile at import, or once for each shape.

    Every parameter is given at each run: a value left in the statement is a ValueError.
    """
    dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
    compilation = cast("SQLCompiler", statement.compile(dialect=dialect))
    values = [name for bind, name in compilation.bind_names.items() if not bind.required]
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
        (rows,) = self.run(owner, [statement], parameters)
        return rows[0] if rows else None

    def all(self, owner: UUID, statement: Statement, **parameters: Any) -> list[Row]:
        """Every row of the statement, run as `owner`."""
        (rows,) = self.run(owner, [statement], parameters)
        return rows

    def run(
        self, owner: UUID, statements: Sequence[Statement], parameters: Mapping[str, Any]
    ) -> list[list[Row]]:
        """The rows of each statement, run as `owner`, in one transaction and one round trip.

        A later statement sees what others committed while an earlier one waited. Raises
        psycopg.Error, and psycopg_pool's kinds of it when there is no connection to be had.
        """
        if self._pool.closed:
            self.open()
        try:
            return self._run(owner, statements, parameters)
        except ROLLED_BACK:
            return self._run(owner, statements, parameters)

    def _run(
        self, owner: UUID, statements: Sequence[Statement], parameters: Mapping[str, Any]
    ) -> list[list[Row]]:
        # Between two Syncs of a pipeline all statements are one implicit transaction, so the
        # settings hold for the others and vanish with them (PostgreSQL, "Pipelining" in the
        # chapter on the message flow).
        settings = {"owner": owner, "timeout": self._statement_timeout}
        values = {"owner": owner, **parameters}
        connection = self._pool.getconn()
        try:
            with connection.pipeline():
                connection.execute(ACT_AS_OWNER, settings)
                cursors = [connection.execute(statement.sql, values) for statement in statements]
            return [cursor.fetchall() for cursor in cursors]
        finally:
            self._pool.putconn(connection)


def configure(connection: Connection[Row]) -> None:
    connection.adapters.register_loader("json", JsonLoader)
