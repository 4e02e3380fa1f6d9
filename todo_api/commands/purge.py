"""`make purge`: remove old rows of the trash and old idempotency keys for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from psycopg import sql

from todo_api.app import RESOURCES
from todo_api.commands.database_command import run_on_database
from todo_api.db.connect import connect
from todo_api.db.database import MAINTENANCE_ROLE

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger(__name__)

# The number of the advisory lock that lets one purge run at a time. It is arbitrary, but must
# differ from the number in migrations/env.py.
PURGE_LOCK = 8_101_978

BATCH = 1_000  # the maximum of rows that one transaction removes

# The role todo_maintenance sees only old rows, because of row-level security. `purged_revision`
# makes a client start a full sync if it has not yet seen a deletion whose row is now removed.
# `revision` is written, but its value does not change: delete_for_good (resources/statements.py)
# says why. The statement locks rows before their owners, in the same order as the trigger
# `write_row` (migrations/). It skips rows that another transaction has locked, because waiting
# for them could end in a deadlock; the next purge removes them.
PURGE = sql.SQL("""
    WITH old AS (
        SELECT user_id, id FROM {table} WHERE deleted_at IS NOT NULL LIMIT %(batch)s
        FOR UPDATE SKIP LOCKED
    ), purged AS (
        DELETE FROM {table} AS rows USING old
        WHERE rows.user_id = old.user_id AND rows.id = old.id
        RETURNING rows.user_id, rows.revision
    ), owners AS (
        SELECT user_id, max(revision) AS revision FROM purged GROUP BY user_id
    ), updated AS (
        UPDATE users SET
            revision = greatest(users.revision, owners.revision),
            purged_revision = greatest(users.purged_revision, owners.revision)
        FROM owners WHERE users.id = owners.user_id
    )
    SELECT count(*) FROM purged
""")

# The role sees only keys that are older than KEY_HOURS (db/tables.py). After this time, clients do
# not repeat a request.
PURGE_KEYS = sql.SQL("""
    WITH old AS (
        SELECT user_id, key FROM idempotency_keys LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    ), purged AS (
        DELETE FROM idempotency_keys AS keys USING old
        WHERE keys.user_id = old.user_id AND keys.key = old.key
        RETURNING keys.key
    )
    SELECT count(*) FROM purged
""")


def purge(url: str, batch: int = BATCH) -> tuple[int, int]:
    """Remove old rows; return how many rows of resources and how many idempotency keys.

    One transaction removes at most `batch` rows. Raises UnreachableError.
    """
    with connect(url, autocommit=True) as connection:
        rows = 0
        for resource in RESOURCES:
            statement = PURGE.format(table=sql.Identifier(resource.table.name))
            rows += purge_rows(connection, statement, batch)
        return rows, purge_rows(connection, PURGE_KEYS, batch)


def purge_rows(
    connection: psycopg.Connection[Any], statement: sql.SQL | sql.Composed, batch: int
) -> int:
    """Run the statement until no old row is left; return the number of removed rows."""
    total = 0
    while True:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (PURGE_LOCK,))
            connection.execute("SELECT set_config('role', %s, true)", (MAINTENANCE_ROLE,))
            row = connection.execute(statement, {"batch": batch}).fetchone()
        count = row[0] if row else 0
        total += count
        if count < batch:
            return total


def purge_and_log(url: str) -> None:
    rows, keys = purge(url)
    log.info("purge finished", removed_rows=rows, removed_idempotency_keys=keys)


if __name__ == "__main__":
    run_on_database(purge_and_log)
