"""Migrations: up, down and up again, by anyone who may, at any time, beside anyone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import errors
from sqlalchemy import NullPool, create_engine, exc

from tests.support import ROOT
from tests.support.api import NEW_TASK
from tests.support.differences import assert_same_json
from tests.support.postgresql import VOLATILE, as_login, execute, migrate
from todo_api.commands.embedded import temporary_cluster
from todo_api.db.schema_version import SCHEMA_VERSION
from todo_api.db.tables import metadata
from todo_api.resources.items import find_item, insert_item
from todo_api.tasks.fields import TASK

# The lock by which migrations take turns.
TURN = 8_101_977

# What the tables are declared to be, as PostgreSQL has understood it. The number beside a query is
# of the first columns, which together name a row. The order of a table's columns is not compared:
# a migration appends, and every statement names its columns.
TABLES = {
    "column": (
        2,
        """
        SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attcollation,
               pg_get_expr(adbin, adrelid)
        FROM pg_class
        JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
          AND relname <> 'alembic_version'
        """,
    ),
    "constraint": (
        2,
        """
        SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid)
        FROM pg_constraint JOIN pg_class ON conrelid = pg_class.oid
        WHERE connamespace = 'public'::regnamespace AND relname <> 'alembic_version'
        """,
    ),
    "index": (
        1,
        """
        SELECT indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version'
        """,
    ),
}
# What only migrations make, beside the tables.
BESIDE = {
    "row-level security": (
        1,
        """
        SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
          AND relname <> 'alembic_version'
        """,
    ),
    "function": (
        1,
        """
        SELECT oid::regprocedure::text, prosrc FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
        """,
    ),
    "trigger": (
        2,
        """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE NOT tgisinternal
        """,
    ),
    "policy": (2, "SELECT tablename, policyname, qual, with_check FROM pg_policies"),
    # What our roles hold in this database.
    "privileges": (
        1,
        """
        SELECT classid::regclass::text, count(*)
        FROM pg_shdepend JOIN pg_roles ON refobjid = pg_roles.oid
        WHERE rolname IN ('todo_app', 'todo_maintenance')
          AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        GROUP BY 1
        """,
    ),
}
ALL = TABLES | BESIDE
EMPTY = {kind: {} for kind in ALL}


def catalog(url, queries=ALL):
    """What the database consists of: by kind, then by name."""
    with psycopg.connect(url) as connection:
        return {
            kind: {
                " ".join(row[:names]): row[names:] for row in connection.execute(query).fetchall()
            }
            for kind, (names, query) in queries.items()
        }


def version(url):
    with psycopg.connect(url) as connection:
        if not connection.execute("SELECT to_regclass('alembic_version')").fetchone()[0]:
            return None
        return connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()[0]


def configuration(url):
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["url"] = url
    return config


class Owned(NamedTuple):
    """An empty database: who owns it, and its URL for the owner and for a superuser."""

    owner: str
    url: str
    superuser_url: str


class Fresh:
    """A server that no migration has ever seen: it has none of our roles."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._databases = []
        self._logins = []

    def login(self, name, attributes=""):
        execute(self._cluster.url(), f"CREATE ROLE {name} LOGIN PASSWORD '{name}' {attributes}")
        self._logins.append(name)
        return name

    def database(self, owner):
        name = f"todo_{len(self._databases)}"
        execute(self._cluster.url(), f"CREATE DATABASE {name} OWNER {owner}")
        self._databases.append(name)
        url = self._cluster.url(name)
        return Owned(owner, as_login(url, owner), url)

    def clear(self):
        for name in self._databases:
            execute(self._cluster.url(), f"DROP DATABASE {name} WITH (FORCE)")
        for name in ["todo_app", "todo_maintenance", *self._logins]:
            execute(self._cluster.url(), f"DROP ROLE IF EXISTS {name}")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (16, 18)])
def cluster(request):
    with temporary_cluster(version=request.param, options=VOLATILE) as running:
        yield running


@pytest.fixture
def fresh(cluster):
    with ExitStack() as stack:
        server = Fresh(cluster)
        stack.callback(server.clear)
        yield server


@pytest.fixture(params=["superuser", "plain owner"])
def owned(fresh, request):
    if request.param == "superuser":
        return fresh.database("postgres")
    return fresh.database(fresh.login("owner", "CREATEROLE"))


@pytest.fixture
def alembic():
    """Start alembic in a process of its own; none outlives the test."""
    with ExitStack() as stack:

        def start(*arguments, cwd=ROOT, **environ):
            process = subprocess.Popen(
                [sys.executable, "-m", "alembic", *arguments],
                cwd=cwd,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def assert_succeeds(process):
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def assert_serves(open_database, url):
    """The application's path works for this login."""
    database, owner = open_database(DATABASE_URL=url), uuid.uuid4()
    task = insert_item(database, owner, TASK, NEW_TASK)
    assert find_item(database, owner, TASK, task.id) == task


def assert_nothing_was_migrated(url):
    assert_same_json(catalog(url), EMPTY, "A migration that fails must change nothing.")
    assert version(url) is None


def test_migrations_go_up_and_down_and_up(owned, open_database):
    migrate(owned.url)
    up = catalog(owned.url)
    migrate(owned.url, "base")
    down = catalog(owned.url)
    migrate(owned.url)
    again = catalog(owned.url)

    assert_same_json(down, EMPTY, "Downgrades must leave nothing behind.")
    assert_same_json(again, up, "Upgrades after downgrades must make the same schema.")
    assert all(up.values())
    assert version(owned.url) == SCHEMA_VERSION
    assert_serves(open_database, owned.url)


def test_every_migration_undoes_what_it_did(owned):
    numbers = [script.revision for script in reversed(scripts())]
    config = configuration(owned.url)

    for number in numbers:
        before = catalog(owned.url)
        command.upgrade(config, number)
        between = catalog(owned.url)
        command.downgrade(config, "-1")
        assert between != before
        assert_same_json(
            catalog(owned.url), before, f"downgrade() of {number} must undo its upgrade()."
        )
        command.upgrade(config, number)


def test_autogenerate_finds_no_difference(owned):
    migrate(owned.url)

    command.check(configuration(owned.url))


def test_the_migrations_produce_the_metadata(new_database):
    migrated, made = new_database("migrated"), new_database("made")
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(made), poolclass=NullPool
    )
    migrate(migrated)

    metadata.create_all(engine)

    wanted = catalog(made, TABLES)
    assert all(wanted.values())
    assert_same_json(
        catalog(migrated, TABLES),
        wanted,
        "Migrations must make what the tables are declared to be: change the newest one, or make"
        " migration.",
    )


def test_two_processes_migrate_a_database_at_once(owned, alembic):
    with psycopg.connect(owned.superuser_url, autocommit=True) as turn:
        turn.execute("SELECT pg_advisory_lock(%s)", (TURN,))
        processes = [alembic("upgrade", "head", DATABASE_URL=owned.url) for _ in range(2)]
        wait_for_blocked(turn, 2)

    for process in processes:
        assert_succeeds(process)
    assert version(owned.url) == SCHEMA_VERSION


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_databases_of_a_fresh_server_are_migrated_at_once(fresh, owned, alembic, outcome):
    databases = [owned, fresh.database(owned.owner), fresh.database(owned.owner)]
    with psycopg.connect(owned.url) as other:
        # Whoever makes the role now, the three wait for; then they race with each other.
        other.execute("CREATE ROLE todo_app NOLOGIN")
        processes = [alembic("upgrade", "head", DATABASE_URL=each.url) for each in databases]
        wait_for_blocked(other, 3)
        getattr(other, outcome)()

    for process in processes:
        assert_succeeds(process)
    assert {version(each.url) for each in databases} == {SCHEMA_VERSION}


def wait_for_blocked(connection, count):
    """Return when so many wait for what the connection has locked, or for each other."""
    with psycopg.connect(connection.info.dsn, autocommit=True) as observer:
        deadline = time.monotonic() + 120  # three processes start on a machine that is busy
        while time.monotonic() < deadline:
            blocked = observer.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'"
            ).fetchone()
            if blocked == (count,):
                return
            time.sleep(0.01)
    pytest.fail("They do not wait.")


@pytest.mark.slow
def test_a_migration_gives_up_on_a_lock_and_leaves_the_schema_as_it_was(new_database):
    url = new_database("locked")
    migrate(url, "0002")
    before = catalog(url)

    with psycopg.connect(url) as other:
        other.execute("SELECT count(*) FROM tasks")  # and the transaction stays open
        began = time.monotonic()
        with pytest.raises(exc.OperationalError) as error:
            migrate(url)
        took = time.monotonic() - began

    assert isinstance(error.value.orig, errors.LockNotAvailable)
    assert took < 10
    assert_same_json(catalog(url), before, "A migration that fails must change nothing.")
    assert version(url) == "0002"
    migrate(url)
    assert version(url) == SCHEMA_VERSION


def test_who_may_not_make_the_role_is_told_the_sql(fresh, open_database):
    owned = fresh.database(fresh.login("owner"))

    with pytest.raises(exc.DBAPIError) as error:
        migrate(owned.url)

    assert_nothing_was_migrated(owned.url)
    execute(owned.superuser_url, told_sql(error.value.orig.diag.message_hint))
    migrate(owned.url)
    assert_serves(open_database, owned.url)


@pytest.mark.parametrize("attributes", ["", "CREATEROLE"])
def test_who_may_not_use_the_role_is_told_the_sql(fresh, cluster, open_database, attributes):
    migrate(fresh.database("postgres").url)
    owned = fresh.database(fresh.login("owner", attributes))

    with pytest.raises(SystemExit) as error:
        migrate(owned.url)

    assert_nothing_was_migrated(owned.url)
    execute(cluster.url(), told_sql(error.value.code))
    migrate(owned.url)
    assert_serves(open_database, owned.url)


def told_sql(message):
    told, _, statements = message.partition(": ")
    assert "role that may" in told
    return statements


def test_the_error_on_the_command_line_names_the_sql(fresh, alembic):
    owned = fresh.database(fresh.login("owner"))

    process = alembic("upgrade", "head", DATABASE_URL=owned.url)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "CREATE ROLE todo_app NOLOGIN; GRANT todo_app TO owner;" in output


def test_the_applications_login_may_be_another_than_the_migrations(
    fresh, owned, alembic, open_database
):
    login = as_login(owned.superuser_url, fresh.login("application"))

    assert_succeeds(
        alembic("upgrade", "head", DATABASE_URL=login, MIGRATION_DATABASE_URL=owned.url)
    )

    assert_serves(open_database, login)


def test_an_applications_login_that_changes_needs_only_another_run(
    fresh, owned, alembic, open_database
):
    migrate(owned.url)
    login = as_login(owned.superuser_url, fresh.login("application"))

    assert_succeeds(
        alembic("upgrade", "head", DATABASE_URL=login, MIGRATION_DATABASE_URL=owned.url)
    )

    assert_serves(open_database, login)


def test_a_downgrade_takes_the_privileges_of_its_database_only(fresh, owned, open_database):
    other = fresh.database(owned.owner)
    migrate(owned.url)
    migrate(other.url)

    migrate(owned.url, "base")

    assert_same_json(catalog(owned.url), EMPTY, "Downgrades must leave nothing behind.")
    assert_serves(open_database, other.url)
    migrate(other.url, "base")
    execute(owned.superuser_url, "DROP ROLE todo_app, todo_maintenance")


def scripts():
    """Every migration, the newest first."""
    return list(
        ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml")).walk_revisions()
    )


def test_the_code_needs_the_newest_migration():
    assert scripts()[0].revision == SCHEMA_VERSION


def test_migrations_are_numbered_in_order():
    numbers = [f"{number:04d}" for number in range(len(scripts()), 0, -1)]

    assert [script.revision for script in scripts()] == numbers
    assert [Path(script.path).name[:4] for script in scripts()] == numbers


@pytest.mark.slow
def test_a_generated_migration_has_the_next_number(new_database, alembic, tmp_path):
    url = new_database("generated")
    following = f"{int(SCHEMA_VERSION) + 1:04d}"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    number = Path("todo_api", "db", "schema_version.py")
    (tmp_path / number).parent.mkdir(parents=True)
    shutil.copy(ROOT / number, tmp_path / number)
    before = (ROOT / number).read_text()
    migrate(url)
    execute(url, "ALTER TABLE tasks DROP COLUMN description")

    assert_succeeds(
        alembic(
            *("revision", "--autogenerate", "--message", "Describe tasks"),
            cwd=tmp_path,
            DATABASE_URL=url,
        )
    )

    text = (tmp_path / "migrations" / "versions" / f"{following}_describe_tasks.py").read_text()
    assert f"revision = '{following}'\ndown_revision = '{SCHEMA_VERSION}'\n" in text
    assert "op.add_column('tasks', sa.Column('description', sa.Text()" in text
    assert_succeeds(alembic("upgrade", "head", cwd=tmp_path, DATABASE_URL=url))
    assert version(url) == following
    assert f'SCHEMA_VERSION = "{following}"' in (tmp_path / number).read_text()
    assert (ROOT / number).read_text() == before


@pytest.mark.slow
def test_a_generated_migration_protects_a_new_resource(new_database, alembic, tmp_path):
    """It is generated for a database without tasks, which are new then."""
    url = new_database("new_resource")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    migrate(url)
    execute(url, "DROP TABLE tasks")

    assert_succeeds(
        alembic(
            *("revision", "--autogenerate", "--message", "Add tasks"),
            cwd=tmp_path,
            DATABASE_URL=url,
        )
    )
    assert_succeeds(alembic("upgrade", "head", cwd=tmp_path, DATABASE_URL=url))

    with psycopg.connect(url) as connection:
        protected = connection.execute(
            "SELECT relrowsecurity, relforcerowsecurity,"
            " (SELECT count(*) FROM pg_policies WHERE tablename = relname),"
            " (SELECT count(*) FROM pg_trigger WHERE tgrelid = pg_class.oid AND NOT tgisinternal)"
            " FROM pg_class WHERE relname = 'tasks'"
        ).fetchone()
    assert protected == (True, True, 2, 2)


@pytest.mark.slow
def test_migrations_are_not_written_out_as_sql(alembic, database_url):
    process = alembic("upgrade", "head", "--sql", DATABASE_URL=database_url)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "they need a database, not --sql" in output
