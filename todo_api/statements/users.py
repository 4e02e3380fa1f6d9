"""What is done to a user as a whole."""

from uuid import UUID

from sqlalchemy import Uuid, bindparam, delete, func, select

from todo_api.database import Database, compiled
from todo_api.tables import tasks, users

OWNER = bindparam("owner", type_=Uuid)

# Tasks are locked before their owner, as by the trigger: the other way round, whoever changes a
# task waits for the owner while this one waits for the task.
LOCK = compiled(
    select(func.count()).select_from(
        select(tasks.c.id)
        .where(tasks.c.user_id == OWNER)
        .order_by(tasks.c.id)
        .with_for_update()
        .subquery()
    )
)
# The tasks go with their owner: the foreign key cascades.
DELETE = compiled(delete(users).where(users.c.id == OWNER).returning(users.c.id))


def delete_user(database: Database, owner: UUID) -> bool:
    """Whether there was anything of the user to erase."""
    statements = [LOCK, DELETE]
    _, deleted = database.write(owner, statements, {}, again=statements)
    return bool(deleted)
