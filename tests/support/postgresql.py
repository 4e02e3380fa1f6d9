"""Databases of tests: their URLs, their migrations, and statements of a superuser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config

from tests.support import ROOT

if TYPE_CHECKING:
    from psycopg import sql

# The data of a run are not used afterwards, so PostgreSQL need not write them to disk.
NOT_DURABLE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}
PARTITION_TABLES = (ROOT / "docs" / "scaling" / "divide.sql").read_text()


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the database to a revision of Alembic, or downgrade it to "base"."""
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["url"] = url
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def at_database(url: str, name: str) -> str:
    """Return the URL with another database in its path."""
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    _, mark, query = path.partition("?")
    return f"{scheme}://{authority}/{name}{mark}{query}"


def as_login(url: str, name: str) -> str:
    """Return the URL with another login, whose password is its name."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{name}:{name}@{authority.rpartition('@')[2]}{slash}{path}"


def execute(url: str, statement: sql.Composed | str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def backdate_deletion(connection: psycopg.Connection, task: dict[str, Any], days: int) -> None:
    """Set `deleted_at` of a deleted task to this number of days ago."""
    connection.execute("SET session_replication_role = replica")
    connection.execute(
        "UPDATE tasks SET deleted_at = clock_timestamp() - %s * interval '1 day' WHERE id = %s",
        (days, task["id"]),
    )
    connection.execute("RESET session_replication_role")
