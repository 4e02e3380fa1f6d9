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

# The foreign keys cascade, so everything that the user owns is deleted, too.
DELETE = compiled(delete(users).where(users.c.id == OWNER).returning(users.c.id))


def delete_user(database: Database, owner: UUID, resources: Sequence[Resource]) -> bool:
    """Erase the user; return whether there was anything to erase.

    Rows are locked before their owner, as by the trigger. In the other order, this request would
    wait for a row that another one has locked, which waits for the owner.
    """
    statements = [*(resource.statements.lock_all for resource in resources), DELETE]
    *_, deleted = database.write(owner, statements, {}, retry=statements)
    return bool(deleted)
