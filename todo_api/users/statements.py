"""Statements on a user as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Text, bindparam, delete, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from todo_api.db.statement import OWNER, compiled
from todo_api.db.tables import users
from todo_api.resources.time_zones import DEFAULT_TIME_ZONE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement

    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource

TIME_ZONE: ColumnElement[str] = bindparam("time_zone", type_=Text)
DEFAULT: ColumnElement[str] = literal_column(f"'{DEFAULT_TIME_ZONE}'", Text)

# The function `change_usage` (migrations/) refuses a request that would exceed this number.
MAX_LISTS = 500

FIND = compiled(
    select(
        users.c.revision,
        users.c.created_at,
        users.c.time_zone,
        users.c.tasks,
        users.c.trashed_tasks,
        users.c.lists,
        users.c.trashed_lists,
        users.c.bytes,
    ).where(users.c.id == OWNER)
)
# A user who has never changed anything has no row, and gets one only for another time zone.
INSERT_FOR_TIME_ZONE = compiled(
    insert(users)
    .from_select(["id"], select(OWNER).where(TIME_ZONE != DEFAULT))
    .on_conflict_do_nothing(index_elements=["id"])
)
# A trigger takes the next revision.
SET_TIME_ZONE = compiled(
    update(users)
    .where(users.c.id == OWNER, users.c.time_zone != TIME_ZONE)
    .values(time_zone=TIME_ZONE)
)

# The foreign keys cascade: PostgreSQL also deletes all rows that the user owns.
DELETE = compiled(delete(users).where(users.c.id == OWNER).returning(users.c.id))


class User(NamedTuple):
    """The state of a user. `created_at` is None for a user who has never changed anything."""

    revision: int
    created_at: datetime | None
    time_zone: str
    tasks: int = 0
    trashed_tasks: int = 0
    lists: int = 0
    trashed_lists: int = 0
    bytes: int = 0


def find_user(database: Database, owner: UUID) -> User:
    """Return the user's state."""
    row = database.one(owner, FIND)
    return User(*row) if row else User(0, None, DEFAULT_TIME_ZONE)


def set_time_zone(database: Database, owner: UUID, time_zone: str) -> User:
    """Set the user's time zone; return the user's state."""
    statements = [INSERT_FOR_TIME_ZONE, SET_TIME_ZONE, FIND]
    *_, rows = database.write(owner, statements, {"time_zone": time_zone}, retry=statements)
    return User(*rows[0]) if rows else User(0, None, DEFAULT_TIME_ZONE)


def erase_user(database: Database, owner: UUID, resources: Sequence[Resource]) -> bool:
    """Erase the user; return whether there was anything to erase.

    All rows are locked before the owner's row, as in the trigger `write_row` (migrations/). In
    the other order, two requests could wait for each other (deadlock).
    """
    statements = [*(resource.statements.lock_all for resource in resources), DELETE]
    *_, deleted = database.write(owner, statements, {}, retry=statements)
    return bool(deleted)
