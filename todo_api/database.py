"""One statement as one user in one round trip; and once more where the first may have failed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from uuid_utils import uuid7

from todo_api import metrics
from todo_api.connection import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.sql import ClauseElement
    from sqlalchemy.sql.compiler import SQLCompiler

    from todo_api.connection import Connection, Row
    from todo_api.pool import Pool

# The role that requests run as. It cannot log in and cannot bypass row-level security; whatever
# role the connection logged in as, a superuser included, a request drops to it.
APPLICATION_ROLE = "todo_app"

# The role that purges: it sees nothing but what has been kept for long enough.
MAINTENANCE_ROLE = "todo_maintenance"

# All local to the transaction: nothing is left for the next user of a pooled connection. The
# trigger stamps what is changed with the id of the attempt. A plan that knows the values sorts a
# small user's tasks where the generic one reads them off an index.
SETTINGS = f"""
    SELECT set_config('role', '{APPLICATION_ROLE}', true),
           set_config('todo.user_id', %(owner)s::text, true),
           set_config('todo.attempt', %(attempt)s::text, true),
           set_config('statement_timeout', %(timeout)s, true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
"""
ACT_AS_OWNER = Statement(SETTINGS.encode())

# When the network is lost before the Sync has come, a server waits for it with the owner's row
# locked, and its statement_timeout is no longer armed. From PostgreSQL 17 on, this one is.
TRANSACTION_TIMEOUT = ", set_config('transaction_timeout', (%(timeout)s::int * 2)::text, true)"
ACT_AS_OWNER_IN_TIME = Statement((SETTINGS + TRANSACTION_TIMEOUT).encode())
HAS_TRANSACTION_TIMEOUT = 170000

# Of the time that is left, what a statement may take: the server's own refusal is to come first,
# for it leaves the connection as it was.
SHARE = 0.95

# SQLSTATEs of what the server has undone because another was faster (PostgreSQL, appendix A).
ROLLED_BACK = frozenset(
    {
        "23505",  # unique_violation: the second time, one sees what the winner of the race did
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
    }
)
# Those of a connection that is no more; poolers use all of class 08, and psycopg has none at all.
LOST = frozenset(
    {
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
    }
)
CONNECTION_EXCEPTION = "08"

# A reason to repeat after which it is not known what the first attempt did.
CONNECTION_LOST = "connection_lost"


class OutcomeUnknownError(psycopg.OperationalError):
    """Whether a change was made cannot be told: its answer was lost."""


def compiled(statement: ClauseElement) -> Statement:
    """The Core statement as SQL, for good: compile at import, or once for each shape.

    It may name `owner`; `attempt`, the id that what it changes is stamped with, be it the first
    time or the second; and `elapsed`, the seconds since the first one began, NULL for that one.
    Every parameter is given at each run: a value left in the statement is a ValueError.
    """
    dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
    compilation = cast("SQLCompiler", statement.compile(dialect=dialect))
    values = [name for bind, name in compilation.bind_names.items() if not bind.required]
    if values:
        raise ValueError(f"Values in the statement instead of parameters: {sorted(values)}")
    return Statement(str(compilation).encode())


@dataclass(frozen=True)
class Database:
    """The database, for one request: until `deadline`, by time.monotonic()."""

    pool: Pool
    deadline: float

    def one(self, owner: UUID, statement: Statement, **parameters: Any) -> Row | None:
        """The first row of the statement, read as `owner`, or None if it has no row."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows[0] if rows else None

    def all(self, owner: UUID, statement: Statement, **parameters: Any) -> list[Row]:
        """Every row of the statement, read as `owner`."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows

    def read(
        self, owner: UUID, statements: Sequence[Statement], parameters: Mapping[str, Any]
    ) -> list[list[Row]]:
        """The rows of each statement, read as `owner`, in one transaction and one round trip.

        Raises psycopg.Error, and psycopg_pool's kinds of it when there is no connection to be had.
        """
        return self._run(owner, statements, parameters)

    def write(
        self,
        owner: UUID,
        statements: Sequence[Statement],
        parameters: Mapping[str, Any],
        *,
        again: Sequence[Statement],
    ) -> list[list[Row]]:
        """The rows of each statement, run as `owner`, in one transaction and one round trip.

        A later statement sees what others committed while an earlier one waited. When the
        connection is lost, and with it what became of them, `again` is run in their place, once:
        it must recognise what the first attempt did. Raises as `read` does, and
        OutcomeUnknownError.
        """
        return self._run(owner, statements, parameters, again)

    def _run(
        self,
        owner: UUID,
        statements: Sequence[Statement],
        parameters: Mapping[str, Any],
        again: Sequence[Statement] | None = None,
    ) -> list[list[Row]]:
        began = time.monotonic()
        values = {"owner": owner, "attempt": str(uuid7()), "elapsed": None, **parameters}
        with self.pool.connection(self.deadline) as connection:
            try:
                return self._transact(connection, statements, values)
            except psycopg.Error as error:
                reason = reason_to_repeat(error)
                if reason is None:
                    raise
                metrics.RETRIES.labels(reason).inc()
        lost = reason == CONNECTION_LOST
        if lost:
            values["elapsed"] = time.monotonic() - began
        try:
            with self.pool.connection(self.deadline) as connection:
                return self._transact(connection, again if lost and again else statements, values)
        except psycopg.OperationalError as error:
            lost = lost or reason_to_repeat(error) == CONNECTION_LOST
            if again is None or not lost:
                raise
            metrics.OUTCOMES_UNKNOWN.inc()
            raise OutcomeUnknownError from error

    def _transact(
        self, connection: Connection, statements: Sequence[Statement], values: dict[str, Any]
    ) -> list[list[Row]]:
        # The settings hold for the statements behind them, and vanish with the transaction.
        left = self.deadline - time.monotonic()
        values["timeout"] = str(max(1, round(left * SHARE * 1000)))
        in_time = connection.pgconn.server_version >= HAS_TRANSACTION_TIMEOUT
        settings = ACT_AS_OWNER_IN_TIME if in_time else ACT_AS_OWNER
        _, *rows = connection.transact([settings, *statements], values, self.deadline)
        return rows


def reason_to_repeat(error: psycopg.Error) -> str | None:
    """Why the same may well succeed when it is run again; None if it would not."""
    state = error.sqlstate
    if state in ROLLED_BACK:
        return "rolled_back"
    if state is None:
        return CONNECTION_LOST if isinstance(error, psycopg.OperationalError) else None
    return CONNECTION_LOST if state in LOST or state.startswith(CONNECTION_EXCEPTION) else None
