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

# The advisory lock by which purges take turns: any number that differs from that of migrations.
PURGE_LOCK = 8_101_978

BATCH = 1_000  # rows of one transaction, at most

# Row-level security lets this role see and delete old rows only, from every login. The owner's
# revision increases, so that the trash has another ETag. `purged_revision` makes clients that have
# not seen the purged deletions start a full sync. Rows are locked before their owners, as by the
# trigger.
PURGE = sql.SQL("""
    WITH old AS (
        SELECT user_id, id FROM {table} WHERE deleted_at IS NOT NULL LIMIT %(batch)s
    ), purged AS (
        DELETE FROM {table} AS rows USING old
        WHERE rows.user_id = old.user_id AND rows.id = old.id
        RETURNING rows.user_id, rows.revision
    ), owners AS (
        SELECT user_id, max(revision) AS revision FROM purged GROUP BY user_id
    ), told AS (
        UPDATE users SET revision = users.revision + 1,
                         purged_revision = greatest(users.purged_revision, owners.revision)
        FROM owners WHERE users.id = owners.user_id
    )
    SELECT count(*) FROM purged
""")

# Keys that are KEY_HOURS old: clients repeat no request after that.
PURGE_KEYS = sql.SQL("""
    WITH old AS (
        SELECT user_id, key FROM idempotency_keys LIMIT %(batch)s
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
    """Purge, and log the numbers.

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
    log.info("purged", rows=rows, idempotency_keys=keys)


if __name__ == "__main__":
    main()
