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


# The database role of requests. It cannot log in and cannot bypass row-level security. Each request
# changes to this role from the role that the connection logged in as, even from a superuser.
APPLICATION_ROLE = "todo_app"


# The database role of the purge. It sees only rows that are old enough to be removed.
MAINTENANCE_ROLE = "todo_maintenance"


# These settings end with the transaction, so the next request on the connection does not see them.
# `todo.attempt` is the write attempt id, which the first run and the retries of a write have in
# common. The trigger `write_row` (migrations/) writes this id into each changed row.
# `todo.max_tasks` and `todo.max_bytes` are the quotas that the function `change_usage` checks.
# plan_cache_mode: generic plans read rows in the order of an index; for an owner with few rows, a
# custom plan would sort.
SETTINGS = f"""
    SELECT set_config('role', '{APPLICATION_ROLE}', true),
           set_config('todo.user_id', %(owner)s::text, true),
           set_config('todo.attempt', %(attempt)s::text, true),
           set_config('todo.max_tasks', %(max_tasks)s, true),
           set_config('todo.max_bytes', %(max_bytes)s, true),
           set_config('statement_timeout', %(timeout)s, true),
           set_config('plan_cache_mode', 'force_generic_plan', true)
"""


ACT_AS_OWNER = Statement(SETTINGS.encode())


# If the network is lost before the Sync arrives, PostgreSQL waits for the Sync and keeps the
# owner's row locked. statement_timeout does not apply then, but transaction_timeout does
# (PostgreSQL 17).
TRANSACTION_TIMEOUT = ", set_config('transaction_timeout', (%(timeout)s::int * 2)::text, true)"


ACT_AS_OWNER_WITH_TIMEOUT = Statement((SETTINGS + TRANSACTION_TIMEOUT).encode())


TRANSACTION_TIMEOUT_SINCE = 170000


# A statement may take this share of the time before the deadline. PostgreSQL then cancels a slow
# statement before the deadline, and the connection stays usable.
STATEMENT_TIMEOUT_SHARE = 0.95


# The maximum number of retries of one request. If PostgreSQL rolls back a retry, the retry has
# changed nothing, so it is retried, too. PostgreSQL rolls it back, for example, if the first run is
# committed at the same time.
MAX_RETRIES = 3


@dataclass(frozen=True)
class Database:
    """The database for one request, until `deadline` (time.monotonic)."""

    pool: Pool
    deadline: float

    def one(self, owner: UUID, statement: Statement, **parameters: Any) -> Row | None:
        """Return the first row that the statement reads as `owner`, or None if there is no row."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows[0] if rows else None

    def all(self, owner: UUID, statement: Statement, **parameters: Any) -> list[Row]:
        """Return all rows that the statement reads as `owner`."""
        (rows,) = self.read(owner, [statement], parameters)
        return rows

    def read(
        self, owner: UUID, statements: Sequence[Statement], parameters: Mapping[str, Any]
    ) -> list[list[Row]]:
        """Return the rows of each statement, read as `owner` in one transaction and round trip.

        Raises psycopg.Error. If no connection is available, the error is TooManyRequests or
        PoolTimeout of psycopg_pool.
        """
        return self._run(owner, statements, parameters)

    def write(
        self,
        owner: UUID,
        statements: Sequence[Statement],
        parameters: Mapping[str, Any],
        *,
        retry: Sequence[Statement],
    ) -> list[list[Row]]:
        """Return the rows of each statement, run as `owner` in one transaction and round trip.

        If a statement waits for a lock, the statements after it see what others have committed
        meanwhile. If the connection is lost, the outcome is unknown: then the statements in `retry`
        run on a new connection; they must detect whether the first run was committed. A retry that
        is rolled back is retried. Raises the errors of `read`, and OutcomeUnknownError if the
        connection is lost again.
        """
        return self._run(owner, statements, parameters, retry)

    def _run(
        self,
        owner: UUID,
        statements: Sequence[Statement],
        parameters: Mapping[str, Any],
        retry: Sequence[Statement] | None = None,
    ) -> list[list[Row]]:
        began = time.monotonic()
        values = {
            "owner": owner,
            "attempt": str(uuid7()),
            "elapsed": None,
            **self.pool.quotas,
            **parameters,
        }
        with self.pool.connection(self.deadline) as connection:
            try:
                return self._transact(connection, statements, values)
            except psycopg.Error as error:
                reason = meaning(error).retry_reason
                if reason is None:
                    raise
                self.pool.metrics.retries.labels(reason).inc()
        is_lost = reason == CONNECTION_LOST
        retry_statements = retry if is_lost and retry else statements
        retries = 0
        while True:
            retries += 1
            if is_lost:
                values["elapsed"] = time.monotonic() - began
            try:
                with self.pool.connection(self.deadline) as connection:
                    return self._transact(connection, retry_statements, values)
            except psycopg.Error as error:
                reason = meaning(error).retry_reason
                if reason == ROLLED_BACK and retries < MAX_RETRIES:
                    self.pool.metrics.retries.labels(reason).inc()
                    continue
                is_lost = is_lost or reason == CONNECTION_LOST
                if retry is None or not is_lost or not isinstance(error, psycopg.OperationalError):
                    raise
                self.pool.metrics.unknown_outcomes.inc()
                raise OutcomeUnknownError from error

    def _transact(
        self, connection: Connection, statements: Sequence[Statement], values: dict[str, Any]
    ) -> list[list[Row]]:
        left = self.deadline - time.monotonic()
        values["timeout"] = str(max(1, round(left * STATEMENT_TIMEOUT_SHARE * 1000)))
        has_transaction_timeout = connection.pgconn.server_version >= TRANSACTION_TIMEOUT_SINCE
        settings = ACT_AS_OWNER_WITH_TIMEOUT if has_transaction_timeout else ACT_AS_OWNER
        _, *rows = connection.transact([settings, *statements], values, self.deadline)
        return rows
