"""Statements on a user as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete

from todo_api.db.statement import OWNER, compiled
from todo_api.db.tables import users

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource

# The foreign keys cascade: PostgreSQL also deletes all rows that the user owns.
DELETE = compiled(delete(users).where(users.c.id == OWNER).returning(users.c.id))


def delete_user(database: Database, owner: UUID, resources: Sequence[Resource]) -> bool:
    """Erase the user; return whether there was anything to erase.

    All rows are locked before the owner's row, as in the trigger `take_revision` (migrations/). In
    the other order, two requests could wait for each other (deadlock).
    """
    statements = [*(resource.statements.lock_all for resource in resources), DELETE]
    *_, deleted = database.write(owner, statements, {}, retry=statements)
    return bool(deleted)
