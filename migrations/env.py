"""How migrations run: in one transaction, one process at a time, never waiting long for a lock."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, create_engine

import todo_api.app  # noqa: F401  every resource declares its table in the metadata
from todo_api.db.database import APPLICATION_ROLE, MAINTENANCE_ROLE
from todo_api.db.tables import metadata
from todo_api.logs import configure_logging
from todo_api.settings import SettingsError, environment, load_database_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection

# Any number, the same in every process: the lock by which migrations take turns.
TURN = 8_101_977
WAIT_FOR_TURN = "120s"

# Whoever waits for a lock makes every later request wait behind it, so a migration gives up soon;
# and what needs longer than this is not made to run beside requests.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "60s"


def number_revision(_: Any, __: Any, directives: list[Any]) -> None:
    """Number revisions in order: /health asks the database for one or a later one."""
    head = ScriptDirectory.from_config(context.config).get_current_head() or "0000"
    for directive in directives:
        directive.rev_id = f"{int(head) + 1:04d}"


def let_act_as_roles(connection: psycopg.Connection[Any], logins: Iterable[str]) -> None:
    """Let each login drop to the application's roles, to those that a migration has made.

    From PostgreSQL 16 on, not even who creates a role may SET ROLE to it until it is granted.
    """
    privilege = "SET" if connection.info.server_version >= 160000 else "MEMBER"  # noqa: PLR2004
    missing = connection.execute(
        """
        SELECT rolname, login FROM pg_roles, unnest(%s::text[]) AS login
        WHERE rolname = ANY (%s) AND NOT pg_has_role(login, oid, %s) ORDER BY login, rolname
        """,
        (list(logins), [APPLICATION_ROLE, MAINTENANCE_ROLE], privilege),
    ).fetchall()
    grants = [
        sql.SQL("GRANT {} TO {};").format(sql.Identifier(role), sql.Identifier(login))
        for role, login in missing
    ]
    for grant in grants:
        try:
            with connection.transaction():
                connection.execute(grant)
        except psycopg.errors.UniqueViolation:
            pass  # another database's migration has just granted it: roles belong to the cluster
        except psycopg.errors.InsufficientPrivilege:
            sys.exit(f"As a role that may: {sql.SQL(' ').join(grants).as_string(connection)}")


def migrate(connection: Connection, login: Any) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_FOR_TURN}'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({TURN})")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        process_revision_directives=number_revision,
    )
    context.run_migrations()
    driver: Any = connection.connection.driver_connection
    let_act_as_roles(driver, {driver.info.user, login or driver.info.user})


def run() -> None:
    if context.is_offline_mode():
        sys.exit("Migrations look at the roles that are there: they need a database, not --sql.")
    # A test names its database; otherwise the environment does.
    given = context.config.attributes.get("url")
    try:
        settings = load_database_settings({"DATABASE_URL": given} if given else environment())
    except SettingsError as error:
        sys.exit(str(error))
    if not given:
        configure_logging(settings.log_level)
    url = settings.migration_database_url
    engine = create_engine(
        "postgresql+psycopg://",
        # Nothing is prepared: should the URL be a pooler's, it may not carry it.
        creator=lambda: psycopg.connect(url, prepare_threshold=None),
        poolclass=NullPool,
    )
    with engine.begin() as connection:
        migrate(connection, conninfo_to_dict(settings.database_url).get("user"))


run()
