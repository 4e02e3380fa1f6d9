"""Renewal: give all rows a new revision after a migration that changes their JSON.

An ETag is the revision and nothing else, so all rows need a new revision if a migration adds or
changes a member of a resource. Such a migration sets `database_state.renewal_position` to the nil
UUID (`make migration` writes this statement). After the migration, this module renews the rows
while servers run, in one transaction per owner. After an interruption, it continues with the owner
at `renewal_position`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from psycopg import sql

from todo_api.db.connect import connect
from todo_api.db.database import MAINTENANCE_ROLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

log = structlog.get_logger(__name__)

# FOR UPDATE: only one process at a time renews the rows of an owner.
FIND_POSITION = """
    SELECT renewal_position FROM database_state WHERE renewal_position IS NOT NULL FOR UPDATE
"""
FIND_NEXT_OWNER = "SELECT id FROM users WHERE id >= %s ORDER BY id LIMIT 1"
ACT_AS_OWNER = """
    SELECT set_config('todo.user_id', %s, true), set_config('todo.renewal', 'on', true)
"""
# Rows are locked before their owner, like in the trigger `write_row` (migrations/), and in
# order of id, like in all statements that lock several rows. So there are no deadlocks.
LOCK_ROWS = sql.SQL("SELECT id FROM {table} WHERE user_id = %s ORDER BY id FOR NO KEY UPDATE")
# The trigger writes a new revision instead of 0, and keeps updated_at. This statement omits rows
# that were inserted after LOCK_ROWS. They already have a new revision, and waiting for them could
# end in a deadlock: the transaction that inserted such a row may hold the row's lock while it waits
# for the lock on the owner's row.
RENEW_ROWS = sql.SQL("UPDATE {table} SET revision = 0 WHERE user_id = %s AND id = ANY(%s)")
# The statement after the lock sees all rows of the owner. A trigger counts later changes.
LOCK_OWNER = "SELECT FROM users WHERE id = %s FOR NO KEY UPDATE"
COUNT_ROWS = "SELECT count_all_rows(%s)"
# After a downgrade, tables and the function that counts may be gone.
FIND_TABLES = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
HAS_COUNTS = "SELECT to_regprocedure('count_all_rows(uuid)') IS NOT NULL"
SET_POSITION = "UPDATE database_state SET renewal_position = %s"

LAST_ID = UUID(int=2**128 - 1)


def renew_revisions(url: str, tables: Sequence[str]) -> int:
    """Renew the rows of these tables if a migration requires it; return the number of owners.

    `url` must log in as the database role that owns the tables. Raises UnreachableError.
    """
    owners = 0
    with connect(url, autocommit=True) as connection:
        while renew_next_owner(connection, tables):
            owners += 1
    if owners:
        log.info("revisions renewed", owners=owners)
    return owners


def renew_next_owner(connection: psycopg.Connection[Any], tables: Sequence[str]) -> bool:
    """Renew the rows of one owner; return False if no owner is left."""
    with connection.transaction():
        position = connection.execute(FIND_POSITION).fetchone()
        if position is None:
            return False
        connection.execute("SELECT set_config('role', %s, true)", (MAINTENANCE_ROLE,))
        owner = connection.execute(FIND_NEXT_OWNER, position).fetchone()
        connection.execute("SELECT set_config('role', 'none', true)")
        if owner is not None:
            connection.execute(ACT_AS_OWNER, (str(owner[0]),))
            existing = connection.execute(FIND_TABLES, (list(tables),)).fetchall()
            locked = {table: lock_rows(connection, table, owner[0]) for (table,) in existing}
            for table, ids in locked.items():
                statement = RENEW_ROWS.format(table=sql.Identifier(table))
                connection.execute(statement, (owner[0], ids))
            connection.execute(LOCK_OWNER, owner)
            if connection.execute(HAS_COUNTS).fetchone() == (True,):
                connection.execute(COUNT_ROWS, owner)
        connection.execute(SET_POSITION, (None if owner is None else next_id(owner[0]),))
        return owner is not None


def lock_rows(connection: psycopg.Connection[Any], table: str, owner: UUID) -> list[UUID]:
    """Lock the owner's rows of the table; return their ids."""
    rows = connection.execute(LOCK_ROWS.format(table=sql.Identifier(table)), (owner,))
    return [row[0] for row in rows]


def next_id(owner: UUID) -> UUID | None:
    """Return the UUID after the owner's in PostgreSQL's order, or None after the last one."""
    return UUID(int=owner.int + 1) if owner != LAST_ID else None
