"""What is done to a user as a whole."""

from uuid import UUID

from sqlalchemy import Uuid, bindparam, delete

from todo_api.database import Database, compiled
from todo_api.tables import users

OWNER = bindparam("owner", type_=Uuid)

# The tasks go with their owner: the foreign key cascades.
DELETE = compiled(delete(users).where(users.c.id == OWNER).returning(users.c.id))


def delete_user(database: Database, owner: UUID) -> bool:
    """Whether there was anything of the user to erase."""
    return database.one(owner, DELETE) is not None
