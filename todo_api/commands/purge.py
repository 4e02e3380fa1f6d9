"""`make purge`: remove deleted rows and idempotency keys for good, once they are old."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import structlog
from psycopg import sql

from todo_api.app import RESOURCES
from todo_api.db.connect import UnreachableError, connect
from todo_api.db.database import MAINTENANCE_ROLE
from todo_api.logs import configure_logging
from todo_api.settings import SettingsError, load_database_settings, read_environment

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger(__name__)

# The advisory lock that lets one purge run at a time: any number but that of migrations.
PURGE_LOCK = 8_101_978

BATCH = 1_000  # the most rows that one transaction removes

# Row-level security limits the role todo_maintenance to old rows, whichever user has logged in.
# Clients that have not seen the purged deletions have to start a full sync because of
# `purged_revision`. `revision` does not change: see remove_for_good in resources/statements.py.
# Rows are locked before their owners, as by the trigger. A locked row is left to the next purge:
# requests lock the rows of an owner in another order, so waiting for one could end in a deadlock.
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

# Keys that are older than KEY_HOURS: after that time, no client repeats the request.
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
    """Remove old rows; return the numbers of removed rows of resources and of idempotency keys.

    One transaction removes at most `batch` rows. Raises UnreachableError.
    """
    with connect(url, autocommit=True) as connection:
        rows = 0
        for resource in RESOURCES:
            statement = PURGE.format(table=sql.Identifier(resource.table.name))
            rows += remove(connection, statement, batch)
        return rows, remove(connection, PURGE_KEYS, batch)


def remove(
    connection: psycopg.Connection[Any], statement: sql.SQL | sql.Composed, batch: int
) -> int:
    """Remove rows in transactions of at most `batch` rows each; return their number."""
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


def main() -> None:
    """Purge, and log the numbers of removed rows.

    Exit with a message if the settings are invalid or the database cannot be reached.
    """
    try:
        settings = load_database_settings(read_environment())
    except SettingsError as error:
        sys.exit(str(error))
    configure_logging(settings.log_level)
    try:
        rows, keys = purge(settings.database_url)
    except UnreachableError as error:
        sys.exit(str(error))
    log.info("purge finished", removed_rows=rows, removed_idempotency_keys=keys)


if __name__ == "__main__":
    main()
