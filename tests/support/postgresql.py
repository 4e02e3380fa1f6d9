"""Databases of tests: their URLs, their migrations, and statements of a superuser."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config

from tests.support import ROOT
from todo_api.commands.embedded import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import sql

# The data of a run are not used afterwards, so PostgreSQL need not write them to disk.
NOT_DURABLE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}
# The newest PostgreSQL of Debian, or None. The embedded one was built without TLS, ICU and the
# locales of the system.
DEBIAN_POSTGRES = max(
    Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres"),
    key=lambda program: int(program.parts[-3]),
    default=None,
)
NO_DEBIAN_POSTGRES = "Debian's package postgresql is not installed"
PARTITION_TABLES = (ROOT / "docs" / "scaling" / "divide.sql").read_text()


class DebianCluster(Cluster):
    """A server of Debian's PostgreSQL in a folder, with more options."""

    def __init__(self, folder: Path, **options: str) -> None:
        assert DEBIAN_POSTGRES, NO_DEBIAN_POSTGRES
        super().__init__(
            folder,
            version=int(DEBIAN_POSTGRES.parts[-3]),
            options=NOT_DURABLE | options,
            programs=DEBIAN_POSTGRES.parent,
        )


@contextmanager
def server_folder() -> Iterator[Path]:
    """Make a folder for the data of a server, and remove it afterwards."""
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server's account needs access to its data in this folder
        yield Path(folder)


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
