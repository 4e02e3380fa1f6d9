"""Run statements as one user in one round trip, and retry once if the connection is lost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from uuid_utils import uuid7

from todo_api.db.errors import CONNECTION_LOST, ROLLED_BACK, OutcomeUnknownError, meaning
from todo_api.db.statement import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from todo_api.db.connection import Connection, Row
    from todo_api.db.pool import Pool


# The role of requests. It cannot log in and cannot bypass row-level security. Each request changes
# to it from the role that the connection logged in as, even from a superuser.
APPLICATION_ROLE = "todo_app"


# The role of the purge. It sees only rows that are old enough to be removed.
MAINTENANCE_ROLE = "todo_maintenance"


# All of these are local to the transaction, so the next request on a pooled connection finds none.
# The trigger writes the attempt's id into each row that changes. For a user with
# few tasks, a custom plan would sort them; the generic plan reads them in order from an index.
SETTINGS = f"""
    SELECT set_config('role', '{APPLICATION_ROLE}', true),
           set_config('todo.user_id', %(owner)s::text, true),
           set_config('todo.attempt', %(attempt)s::text, true),
           set_config('statement_timeout', %(timeout)s, true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
"""


ACT_AS_OWNER = Statement(SETTINGS.encode())


# If the network is lost before the Sync arrives, PostgreSQL waits for it and keeps the owner's row
# locked, and statement_timeout no longer applies. transaction_timeout, of PostgreSQL 17, does.
TRANSACTION_TIMEOUT = ", set_config('transaction_timeout', (%(timeout)s::int * 2)::text, true)"


ACT_AS_OWNER_IN_TIME = Statement((SETTINGS + TRANSACTION_TIMEOUT).encode())


TRANSACTION_TIMEOUT_SINCE = 170000


# A statement may take this share of the time that is left, so that PostgreSQL cancels it before the
# deadline: a cancelled statement leaves the connection usable.
SHARE = 0.95


# A retry that is rolled back has changed nothing, so it is run again. It can be rolled back because
# it loses a race against the first run, which PostgreSQL may finish after the connection is lost.
MOST_RETRIES = 3


@dataclass(frozen=True)
class Database:
    """The database for one request, until `deadline` (time.monotonic)."""

    pool: Pool
    deadline: float

    def one(self, owner: UUID, statement: Statement, **parameters: Any) -> Row | None:
        """Return the statement's first row, read as `owner`, or None if it has no row."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows[0] if rows else None

    def all(self, owner: UUID, statement: Statement, **parameters: Any) -> list[Row]:
        """Return every row of the statement, read as `owner`."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows

    def read(
        self, owner: UUID, statements: Sequence[Statement], parameters: Mapping[str, Any]
    ) -> list[list[Row]]:
        """Return the rows of each statement, read as `owner` in one transaction and round trip.

        Raises psycopg.Error; and psycopg_pool's TooManyRequests or PoolTimeout, which are derived
        from it, if no connection is available.
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
        """Return the rows of each statement, run as `owner` in one transaction and round trip.

        A later statement sees what others committed while an earlier one waited for a lock. If the
        connection is lost, it is unknown whether the statements were committed: then `again` runs
        in their place, and must detect whether the first run was committed. A retry that is rolled
        back is run again. Raises as `read` does, and OutcomeUnknownError if the connection of a
        retry is lost, too.
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
        repeated = again if lost and again else statements
        retries = 0
        while True:
            retries += 1
            if lost:
                values["elapsed"] = time.monotonic() - began
            try:
                with self.pool.connection(self.deadline) as connection:
                    return self._transact(connection, repeated, values)
            except psycopg.Error as error:
                reason = meaning(error).retry
                if reason == ROLLED_BACK and retries < MOST_RETRIES:
                    self.pool.metrics.retries.labels(reason).inc()
                    continue
                lost = lost or reason == CONNECTION_LOST
                if again is None or not lost or not isinstance(error, psycopg.OperationalError):
                    raise
                self.pool.metrics.unknown_outcomes.inc()
                raise OutcomeUnknownError from error

    def _transact(
        self, connection: Connection, statements: Sequence[Statement], values: dict[str, Any]
    ) -> list[list[Row]]:
        # The settings apply to the statements after them, and end with the transaction.
        left = self.deadline - time.monotonic()
        values["timeout"] = str(max(1, round(left * SHARE * 1000)))
        in_time = connection.pgconn.server_version >= TRANSACTION_TIMEOUT_SINCE
        settings = ACT_AS_OWNER_IN_TIME if in_time else ACT_AS_OWNER
        _, *rows = connection.transact([settings, *statements], values, self.deadline)
        return rows
