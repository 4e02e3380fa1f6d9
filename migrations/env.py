"""Run migrations: in one transaction, one process at a time, with short waits for locks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import context
from alembic.operations.ops import (
    AddColumnOp,
    CreateCheckConstraintOp,
    ExecuteSQLOp,
    ModifyTableOps,
)
from alembic.script import ScriptDirectory
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import CheckConstraint, NullPool, create_engine, inspect, text

from todo_api.app import RESOURCES
from todo_api.commands.renewal import renew_revisions
from todo_api.db.connect import UnreachableError, connect
from todo_api.db.database import APPLICATION_ROLE, MAINTENANCE_ROLE
from todo_api.db.tables import TRASH_DAYS
from todo_api.logs import configure_logging
from todo_api.resources.row_function import (
    function_name,
    json_function,
    json_function_name,
    row_function,
    written_values,
)
from todo_api.settings import SettingsError, load_database_settings, read_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from todo_api.resources.resource import Resource

# The metadata of all tables, also of those without a resource.
metadata = RESOURCES[0].table.metadata

SCHEMA_VERSION_FILE = "todo_api/db/schema_version.py"

# The number of the advisory lock that lets one migration run at a time. The number is arbitrary.
MIGRATION_LOCK = 8_101_977
MIGRATION_LOCK_TIMEOUT = "120s"

# Requests wait behind a migration that waits for a lock, so a migration fails after 5 s of waiting.
# A statement of more than 60 s is not suitable to run while the API serves requests.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "60s"


def complete_migration(migration: Any, _: Any, directives: list[Any]) -> None:
    """Number a generated migration, and add the parts that Alembic does not compare.

    These are CHECK constraints; the triggers, grants and row-level security of a new resource; the
    grants of a new column; the function that completes rows, if it has changed; and the statement
    that starts the renewal (new revisions for all rows, commands/renewal.py), if rows have other
    values now. SCHEMA_VERSION becomes the new number. Numbers ascend, because /health compares
    SCHEMA_VERSION with the number in the database.
    """
    script = ScriptDirectory.from_config(context.config)
    head = script.get_current_head() or "0000"
    for directive in directives:
        directive.rev_id = f"{int(head) + 1:04d}"
        directive.upgrade_ops.ops += missing_checks(migration.connection)
        directive.upgrade_ops.ops += protect_new_tables(migration.connection)
        directive.upgrade_ops.ops += grant_new_columns(directive.upgrade_ops.ops)
        for resource in changed_resources(migration.connection):
            table = resource.table.name
            function = definition_of(migration.connection, function_name(table))
            renewal = [ExecuteSQLOp(RENEW)] if needs_renewal(resource, function) else []
            functions = [row_function(resource), json_function(resource)]
            directive.upgrade_ops.ops += [*map(ExecuteSQLOp, functions), *renewal]
            current = [function, definition_of(migration.connection, json_function_name(table))]
            directive.downgrade_ops.ops += [*map(ExecuteSQLOp, current), *renewal]
        # Not for `alembic check`, which writes no migration.
        if getattr(context.config.cmd_opts, "autogenerate", False):
            set_schema_version(Path(script.dir).parent / SCHEMA_VERSION_FILE, directive.rev_id)


def set_schema_version(file: Path, number: str) -> None:
    """Write the number into the code, if these migrations are in a checkout."""
    if file.exists():
        line = re.compile('SCHEMA_VERSION = "[0-9]+"')
        file.write_text(line.sub(f'SCHEMA_VERSION = "{number}"', file.read_text()))


def missing_checks(connection: Connection) -> Iterator[CreateCheckConstraintOp]:
    """Yield an operation for each CHECK constraint that a table in the database does not have.

    CREATE TABLE contains the CHECK constraints of a new table.
    """
    inspector = inspect(connection)
    for table in metadata.tables.values():
        if not inspector.has_table(table.name):
            continue
        existing = {check["name"] for check in inspector.get_check_constraints(table.name)}
        for constraint in table.constraints:
            if isinstance(constraint, CheckConstraint):
                name = str(constraint.name)
                if name not in existing:
                    yield CreateCheckConstraintOp.from_constraint(constraint)


# The trigger, the grants and row-level security of every resource. The policy's setting is NULL
# before the first transaction that sets it, and '' after it. In both cases there is no user, and no
# row is visible.
PROTECTION = (
    (
        "CREATE TRIGGER write_row_on_insert BEFORE INSERT ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION {function}()"
    ),
    (
        "CREATE TRIGGER write_row_on_update BEFORE UPDATE ON {table}"
        " FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION {function}()"
    ),
    (
        "CREATE TRIGGER write_usage AFTER INSERT OR UPDATE ON {table}"
        " FOR EACH STATEMENT WHEN (current_setting('todo.usage', true) <> '')"
        " EXECUTE FUNCTION write_usage()"
    ),
    (
        "CREATE TRIGGER count_deleted_rows AFTER DELETE ON {table}"
        " REFERENCING OLD TABLE AS old_rows"
        " FOR EACH STATEMENT EXECUTE FUNCTION count_deleted_rows()"
    ),
    # Requests cannot write the columns that the triggers write.
    (
        "GRANT SELECT, INSERT (user_id, id, {columns}), UPDATE ({columns}, deleted_at), DELETE"
        " ON {table} TO {application}"
    ),
    # Of UPDATE for one column, the purge needs the right to lock rows.
    (
        "GRANT SELECT (user_id, id, revision, deleted_at), UPDATE (attempt), DELETE"
        " ON {table} TO {maintenance}"
    ),
    "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
    (
        "CREATE POLICY owner ON {table}"
        " USING (user_id = nullif(current_setting('todo.user_id', true), '')::uuid)"
        " WITH CHECK (user_id = nullif(current_setting('todo.user_id', true), '')::uuid)"
    ),
    (
        "CREATE POLICY trash ON {table} AS RESTRICTIVE FOR DELETE TO {application}"
        " USING (deleted_at IS NOT NULL)"
    ),
    (
        "CREATE POLICY maintenance ON {table} TO {maintenance}"
        " USING (deleted_at < clock_timestamp() - interval '{days} days')"
    ),
)


def protect_new_tables(connection: Connection) -> Iterator[ExecuteSQLOp]:
    """Yield the statements of PROTECTION for each table that the database does not have."""
    existing = inspect(connection).get_table_names()
    for resource in RESOURCES:
        if resource.table.name not in existing:
            yield ExecuteSQLOp(row_function(resource))
            yield ExecuteSQLOp(json_function(resource))
            for statement in PROTECTION:
                yield ExecuteSQLOp(
                    statement.format(
                        table=resource.table.name,
                        function=function_name(resource.table.name),
                        columns=", ".join(resource.written_columns),
                        application=APPLICATION_ROLE,
                        maintenance=MAINTENANCE_ROLE,
                        days=TRASH_DAYS,
                    )
                )


# The renewal runs after the migration: see commands/renewal.py of the package.
RENEW = "UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'"


def grant_new_columns(operations: Iterable[Any]) -> list[ExecuteSQLOp]:
    """Return the grants for columns that these operations add and that requests write."""
    columns = {resource.table.name: resource.written_columns for resource in RESOURCES}
    added = {
        operation.table_name: [
            each.column.name
            for each in operation.ops
            if isinstance(each, AddColumnOp)
            and each.column.name in columns.get(operation.table_name, ())
        ]
        for operation in operations
        if isinstance(operation, ModifyTableOps)
    }
    return [
        ExecuteSQLOp(
            f"GRANT INSERT ({', '.join(names)}), UPDATE ({', '.join(names)})"
            f" ON {table} TO {APPLICATION_ROLE}"
        )
        for table, names in added.items()
        if names
    ]


def changed_resources(connection: Connection) -> list[Resource]:
    """Return the resources whose function in the database is not the one of the declarations."""
    existing = inspect(connection).get_table_names()
    return [
        resource
        for resource in RESOURCES
        if resource.table.name in existing
        and row_function(resource).split("$$")[1]
        != definition_of(connection, function_name(resource.table.name)).split("$function$")[1]
    ]


def definition_of(connection: Connection, function: str) -> str:
    """Return the statement that makes the function that the database has now."""
    definition = text("SELECT pg_get_functiondef(CAST(:name AS regproc))")
    return str(connection.execute(definition, {"name": function}).scalar_one())


def needs_renewal(resource: Resource, function: str) -> bool:
    """Return whether the function in the database writes other values into rows."""
    return any(part not in function for part in written_values(resource))


def grant_roles_to_logins(connection: psycopg.Connection[Any], logins: Iterable[str]) -> None:
    """Grant each login the application's roles that exist, so that it may SET ROLE to them.

    From PostgreSQL 16 on, the creator of a role needs this grant, too.
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
            pass  # a migration of another database has just granted it: databases share roles
        except psycopg.errors.InsufficientPrivilege:
            statements = sql.SQL(" ").join(grants).as_string(connection)
            sys.exit(f"Run this SQL as a role that may grant these roles: {statements}")


def migrate(connection: Connection, login: Any) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_TIMEOUT}'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        process_revision_directives=complete_migration,
    )
    context.run_migrations()
    driver: Any = connection.connection.driver_connection
    grant_roles_to_logins(driver, {driver.info.user, login or driver.info.user})


def run() -> None:
    if context.is_offline_mode():
        sys.exit("Migrations look at the roles that are there: they need a database, not --sql.")
    # A test names its database; otherwise the environment does.
    given = context.config.attributes.get("url")
    try:
        settings = load_database_settings({"DATABASE_URL": given} if given else read_environment())
    except SettingsError as error:
        sys.exit(str(error))
    if not given:
        configure_logging(settings.log_level)
    url = settings.migration_database_url
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(url),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            migrate(connection, conninfo_to_dict(settings.database_url).get("user"))
            has_state = inspect(connection).has_table("database_state")
        if has_state:
            renew_revisions(url, [resource.table.name for resource in RESOURCES])
    except UnreachableError as error:
        sys.exit(str(error))


run()
