"""What the operators ask of the database."""

from uuid import UUID

from sqlalchemy import select

from todo_api.database import Database, compiled
from todo_api.tables import alembic_version

NOBODY = UUID(int=0)

SCHEMA_VERSION = compiled(select(alembic_version.c.version_num))


def find_schema_version(database: Database) -> str | None:
    """The latest migration that the database holds, read as a request would read it."""
    row = database.one(NOBODY, SCHEMA_VERSION)
    return row[0] if row else None
