"""Run statements as one user in one round trip, and once more where the first run was lost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from uuid_utils import uuid7

from todo_api.db.errors import CONNECTION_LOST, OutcomeUnknownError, meaning
from todo_api.db.statement import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from todo_api.db.connection import Connection, Row
    from todo_api.db.pool import Pool


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
                reason = meaning(error).retry
                if reason is None:
                    raise
                self.pool.metrics.retries.labels(reason).inc()
        lost = reason == CONNECTION_LOST
        if lost:
            values["elapsed"] = time.monotonic() - began
        try:
            with self.pool.connection(self.deadline) as connection:
                return self._transact(connection, again if lost and again else statements, values)
        except psycopg.OperationalError as error:
            lost = lost or meaning(error).retry == CONNECTION_LOST
            if again is None or not lost:
                raise
            self.pool.metrics.outcomes_unknown.inc()
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
