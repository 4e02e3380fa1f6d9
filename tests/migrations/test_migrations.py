"""Migrations: upgrade and downgrade, with different roles, concurrently, and generated ones."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
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
from tests.support.postgresql import NOT_DURABLE, as_login, execute, migrate
from todo_api.commands.embedded import temporary_cluster
from todo_api.db.schema_version import SCHEMA_VERSION
from todo_api.db.tables import metadata
from todo_api.resources.items import find_item, insert_item
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

# The advisory lock that lets one migration run at a time.
MIGRATION_LOCK = 8_101_977

# Queries for the parts of the schema that the table metadata declares. The number before a query
# is the number of leading columns that name a row. The order of a table's columns is not compared,
# because a migration appends columns and every statement names its columns.
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
# Queries for the parts of the schema that only migrations create.
MIGRATION_PARTS = {
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
    # The privileges of the roles todo_app and todo_maintenance in this database.
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
ALL = TABLES | MIGRATION_PARTS
EMPTY_SCHEMA = {kind: {} for kind in ALL}


def catalog(url, queries=ALL):
    """Return the parts of the schema by kind, then by name."""
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


class OwnedDatabase(NamedTuple):
    """An empty database: its owner, and its URLs for the owner and for a superuser."""

    owner: str
    url: str
    superuser_url: str


class EmptyServer:
    """A server without roles or databases of this project."""

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
        return OwnedDatabase(owner, as_login(url, owner), url)

    def clear(self):
        for name in self._databases:
            execute(self._cluster.url(), f"DROP DATABASE {name} WITH (FORCE)")
        for name in ["todo_app", "todo_maintenance", *self._logins]:
            execute(self._cluster.url(), f"DROP ROLE IF EXISTS {name}")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (16, 18)])
def cluster(request):
    with temporary_cluster(version=request.param, options=NOT_DURABLE) as running:
        yield running


@pytest.fixture
def empty_server(cluster):
    with ExitStack() as stack:
        server = EmptyServer(cluster)
        stack.callback(server.clear)
        yield server


@pytest.fixture(params=["superuser", "plain owner"])
def owned_database(empty_server, request):
    if request.param == "superuser":
        return empty_server.database("postgres")
    return empty_server.database(empty_server.login("owner", "CREATEROLE"))


@pytest.fixture
def alembic():
    """Start alembic in a process that ends with the test."""
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


@pytest.fixture(scope="module")
def start_migration():
    """Return a function that migrates a database in another process.

    Each process is a fork of one that has already imported the modules, which takes a second.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.support.postgresql", "todo_api.app"])

    def start(url):
        process = processes.Process(target=migrate, args=(url,), daemon=True)
        process.start()
        return process

    return start


def assert_all_succeed(processes):
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def assert_succeeds(process):
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def assert_serves(open_database, url):
    """Check that the application can insert and read a task with this login."""
    database, owner = open_database(DATABASE_URL=url), uuid.uuid4()
    task = insert_item(database, owner, TASK, None, NEW_TASK).item
    assert find_item(database, owner, TASK, task.id) == task


def assert_nothing_was_migrated(url):
    assert_same_json(catalog(url), EMPTY_SCHEMA, "A migration that fails must change nothing.")
    assert version(url) is None


def test_upgrade_after_downgrade_restores_the_schema(owned_database, open_database):
    migrate(owned_database.url)
    upgraded = catalog(owned_database.url)
    migrate(owned_database.url, "base")
    downgraded = catalog(owned_database.url)
    migrate(owned_database.url)
    upgraded_again = catalog(owned_database.url)

    assert_same_json(downgraded, EMPTY_SCHEMA, "Downgrades must leave nothing behind.")
    assert_same_json(
        upgraded_again, upgraded, "An upgrade after a downgrade must create the same schema."
    )
    assert all(upgraded.values())
    assert version(owned_database.url) == SCHEMA_VERSION
    assert_serves(open_database, owned_database.url)


def test_downgrade_of_every_migration_undoes_its_upgrade(owned_database):
    numbers = [script.revision for script in reversed(scripts())]
    config = configuration(owned_database.url)

    for number in numbers:
        before = catalog(owned_database.url)
        command.upgrade(config, number)
        after = catalog(owned_database.url)
        command.downgrade(config, "-1")
        assert after != before
        assert_same_json(
            catalog(owned_database.url), before, f"downgrade() of {number} must undo its upgrade()."
        )
        command.upgrade(config, number)


def test_autogenerate_finds_no_difference(owned_database):
    migrate(owned_database.url)

    command.check(configuration(owned_database.url))


def test_migrations_create_the_declared_tables(new_database):
    migrated, created = new_database("migrated"), new_database("created")
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(created), poolclass=NullPool
    )
    migrate(migrated)

    metadata.create_all(engine)

    expected = catalog(created, TABLES)
    assert all(expected.values())
    assert_same_json(
        catalog(migrated, TABLES),
        expected,
        "Migrations must create the declared tables: change the newest migration, or run"
        " `make migration`.",
    )


def test_two_processes_can_migrate_a_database_at_once(owned_database, start_migration):
    with psycopg.connect(owned_database.superuser_url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        processes = [start_migration(owned_database.url) for _ in range(2)]
        wait_for_blocked(holder, 2)

    assert_all_succeed(processes)
    assert version(owned_database.url) == SCHEMA_VERSION


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_databases_of_an_empty_server_can_be_migrated_at_once(
    empty_server, owned_database, start_migration, outcome
):
    databases = [
        owned_database,
        empty_server.database(owned_database.owner),
        empty_server.database(owned_database.owner),
    ]
    with psycopg.connect(owned_database.url) as other:
        # The three processes wait for the transaction that creates the role, then run at once.
        other.execute("CREATE ROLE todo_app NOLOGIN")
        processes = [start_migration(database.url) for database in databases]
        wait_for_blocked(other, 3)
        getattr(other, outcome)()

    assert_all_succeed(processes)
    assert {version(database.url) for database in databases} == {SCHEMA_VERSION}


def wait_for_blocked(connection, count):
    """Return when `count` connections of the server wait for a lock."""
    with psycopg.connect(connection.info.dsn, autocommit=True) as observer:
        deadline = time.monotonic() + 120  # three processes may start slowly on a busy machine
        while time.monotonic() < deadline:
            blocked = observer.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'"
            ).fetchone()
            if blocked == (count,):
                return
            time.sleep(0.01)
    pytest.fail("The processes do not wait for the lock.")


@pytest.mark.slow
def test_migration_that_waits_for_a_lock_fails_and_changes_nothing(new_database):
    url = new_database("locked")
    migrate(url, "0002")
    before = catalog(url)

    with psycopg.connect(url) as other:
        other.execute("SELECT count(*) FROM tasks")  # the transaction stays open
        started_at = time.monotonic()
        with pytest.raises(exc.OperationalError) as error:
            migrate(url)
        duration = time.monotonic() - started_at

    assert isinstance(error.value.orig, errors.LockNotAvailable)
    assert duration < 10
    assert_same_json(catalog(url), before, "A migration that fails must change nothing.")
    assert version(url) == "0002"
    migrate(url)
    assert version(url) == SCHEMA_VERSION


def test_error_of_a_login_that_may_not_create_the_role_contains_the_sql(
    empty_server, open_database
):
    owned_database = empty_server.database(empty_server.login("owner"))

    with pytest.raises(exc.DBAPIError) as error:
        migrate(owned_database.url)

    assert_nothing_was_migrated(owned_database.url)
    execute(owned_database.superuser_url, read_sql_of_hint(error.value.orig.diag.message_hint))
    migrate(owned_database.url)
    assert_serves(open_database, owned_database.url)


@pytest.mark.parametrize("attributes", ["", "CREATEROLE"])
def test_error_of_a_login_that_may_not_use_the_role_contains_the_sql(
    empty_server, cluster, open_database, attributes
):
    migrate(empty_server.database("postgres").url)
    owned_database = empty_server.database(empty_server.login("owner", attributes))

    with pytest.raises(SystemExit) as error:
        migrate(owned_database.url)

    assert_nothing_was_migrated(owned_database.url)
    execute(cluster.url(), read_sql_of_hint(error.value.code))
    migrate(owned_database.url)
    assert_serves(open_database, owned_database.url)


def read_sql_of_hint(message):
    hint, _, statements = message.partition(": ")
    assert "Run this SQL as a role that may " in hint
    return statements


def test_error_on_the_command_line_contains_the_sql(empty_server, alembic):
    owned_database = empty_server.database(empty_server.login("owner"))

    process = alembic("upgrade", "head", DATABASE_URL=owned_database.url)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "CREATE ROLE todo_app NOLOGIN; GRANT todo_app TO owner;" in output


def test_application_and_migrations_may_have_different_logins(
    empty_server, owned_database, alembic, open_database
):
    login = as_login(owned_database.superuser_url, empty_server.login("application"))

    assert_succeeds(
        alembic("upgrade", "head", DATABASE_URL=login, MIGRATION_DATABASE_URL=owned_database.url)
    )

    assert_serves(open_database, login)


def test_new_login_of_the_application_needs_another_run_of_the_migrations(
    empty_server, owned_database, alembic, open_database
):
    migrate(owned_database.url)
    login = as_login(owned_database.superuser_url, empty_server.login("application"))

    assert_succeeds(
        alembic("upgrade", "head", DATABASE_URL=login, MIGRATION_DATABASE_URL=owned_database.url)
    )

    assert_serves(open_database, login)


def test_downgrade_revokes_only_the_privileges_of_its_database(
    empty_server, owned_database, open_database
):
    other = empty_server.database(owned_database.owner)
    migrate(owned_database.url)
    migrate(other.url)

    migrate(owned_database.url, "base")

    assert_same_json(
        catalog(owned_database.url), EMPTY_SCHEMA, "Downgrades must leave nothing behind."
    )
    assert_serves(open_database, other.url)
    migrate(other.url, "base")
    execute(owned_database.superuser_url, "DROP ROLE todo_app, todo_maintenance")


def scripts():
    """Return all migrations, the newest first."""
    return list(
        ScriptDirectory.from_config(Config(toml_file=ROOT / "pyproject.toml")).walk_revisions()
    )


def test_schema_version_of_the_code_is_the_newest_migration():
    assert scripts()[0].revision == SCHEMA_VERSION


def test_migrations_are_numbered_in_order():
    numbers = [f"{number:04d}" for number in range(len(scripts()), 0, -1)]

    assert [script.revision for script in scripts()] == numbers
    assert [Path(script.path).name[:4] for script in scripts()] == numbers


INSERT_TASK = """
    INSERT INTO tasks (user_id, id, title) VALUES (gen_random_uuid(), gen_random_uuid(), 'Oats')
"""


def read_revisions(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT revision FROM tasks ORDER BY user_id, id").fetchall()


# The statements of the version before 0009, which counts revisions from 1 in the trigger.
SETTINGS_OF_0008 = """
    SELECT set_config('role', 'todo_app', true), set_config('todo.user_id', %(owner)s, true),
           set_config('todo.attempt', gen_random_uuid()::text, true)
"""
WRITES_OF_0008 = (
    "INSERT INTO tasks (user_id, id, title) VALUES (%(owner)s, gen_random_uuid(), 'New')",
    """
    UPDATE tasks SET title = title || '.'
    WHERE user_id = %(owner)s AND id = %(id)s AND deleted_at IS NULL
    """,
    """
    UPDATE tasks SET deleted_at = clock_timestamp() WHERE user_id = %(owner)s
    AND id = (SELECT id FROM tasks WHERE user_id = %(owner)s AND deleted_at IS NULL LIMIT 1)
    """,
)


def test_existing_rows_get_clock_revisions_beside_writers_of_the_version_before(
    new_database, open_database
):
    """Three writers of version 0008 go on while 0009 is applied and 40 owners are renewed."""
    url = new_database("clock_revisions")
    migrate(url, "0008")
    owners = [str(uuid.uuid4()) for _ in range(40)]
    with psycopg.connect(url, autocommit=True) as connection:
        for owner in owners:
            connection.execute(
                "INSERT INTO tasks (user_id, id, title)"
                " SELECT %s, gen_random_uuid(), 'Task ' || n FROM generate_series(1, 25) AS n",
                (owner,),
            )
        ids = dict(connection.execute("SELECT DISTINCT ON (user_id) user_id::text, id FROM tasks"))
    # This owner is not written to meanwhile.
    quiet = owners[7]
    unchanged = read_tasks(url, quiet)
    has_ended = threading.Event()
    errors_of_writers = []

    def write(chosen):
        with psycopg.connect(url) as connection:
            rounds = itertools.cycle(itertools.product(chosen, WRITES_OF_0008))
            while not has_ended.is_set():
                owner, statement = next(rounds)
                values = {"owner": owner, "id": ids[owner]}
                try:
                    with connection.transaction():
                        connection.execute(SETTINGS_OF_0008, values)
                        connection.execute(statement, values)
                except psycopg.Error as error:
                    errors_of_writers.append(error)

    writers = [
        threading.Thread(target=write, args=([each for each in owners[n::3] if each != quiet],))
        for n in range(3)
    ]
    before = time.time_ns() // 1000
    for writer in writers:
        writer.start()
    migrate(url)
    has_ended.set()
    for writer in writers:
        writer.join(60)

    assert errors_of_writers == []
    with psycopg.connect(url) as connection:
        least, above = connection.execute(
            "SELECT min(tasks.revision), count(*) FILTER (WHERE tasks.revision > users.revision)"
            " FROM tasks JOIN users ON users.id = user_id"
        ).fetchone()
        state = connection.execute("SELECT renewal_position FROM database_state").fetchone()
    assert least >= before, "no row keeps a number of version 0008"
    assert above == 0
    assert state == (None,)
    assert read_wrongly_rendered(url) == []
    renewed = read_tasks(url, quiet)
    assert [row[:-1] for row in renewed] == [row[:-1] for row in unchanged]
    assert len({row[-1] for row in renewed}) == 1
    assert_serves(open_database, url)


def test_rows_of_the_version_before_get_the_default_of_a_new_member(new_database):
    """0011 adds the priority of a task. The version before still inserts rows without it."""
    url = new_database("priority")
    migrate(url, "0010")
    execute(url, INSERT_TASK)
    before = read_revisions(url)

    migrate(url)
    renewed = read_revisions(url)
    execute(url, INSERT_TASK)

    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT priority, json::json->>'priority' FROM tasks").fetchall()
    assert renewed > before, "a new member changes the JSON: it takes a revision"
    assert rows == [("none", "none")] * 2
    assert read_wrongly_rendered(url) == []


# The members of a task in version 0011, and how 0013 and 0014 fill the new columns. 0014 also adds
# `position`, which follows from the time of creation.
MEMBERS_OF_0011 = [
    *("id", "user_id", "title", "description", "completed", "priority"),
    *("created_at", "updated_at", "revision"),
]
DEFAULTS_OF_0014 = {
    "labels": [],
    "due_date": None,
    "due_time": None,
    "time_zone": None,
    "due_at": None,
    "start_date": None,
    "list_id": None,
    "parent_id": None,
    "metadata": {},
}
INSERT_OF_0011 = """
    INSERT INTO tasks (user_id, id, title, description, completed, priority)
    VALUES (%(owner)s, gen_random_uuid(), %(title)s, NULL, %(completed)s, 'low')
"""
# Each change that a server of version 0011 makes, as todo_app.
CHANGES_OF_0011 = (
    "UPDATE tasks SET title = 'Changed', description = 'New' WHERE user_id = %(owner)s",
    "UPDATE tasks SET completed = NOT completed WHERE user_id = %(owner)s",
    "UPDATE tasks SET priority = 'high' WHERE user_id = %(owner)s",
    "UPDATE tasks SET deleted_at = clock_timestamp() WHERE user_id = %(owner)s AND completed",
    "UPDATE tasks SET deleted_at = NULL WHERE user_id = %(owner)s",
)


@pytest.fixture
def upgraded_rows(new_database):
    """The URL of a database, an owner, and the owner's rows before the upgrade, by title."""
    url, owner = new_database("upgraded"), str(uuid.uuid4())
    migrate(url, "0011")
    with psycopg.connect(url, autocommit=True) as connection:
        for title, completed in (("open", False), ("done", True), ("deleted", True)):
            connection.execute(
                INSERT_OF_0011, {"owner": owner, "title": title, "completed": completed}
            )
        connection.execute("UPDATE tasks SET deleted_at = now() WHERE title = 'deleted'")
    before = read_json(url)
    migrate(url)
    return url, owner, before


def read_json(url):
    """Return the stored JSON objects, by title."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT title, json::json FROM tasks").fetchall()
    return dict(rows)


def test_rows_of_the_version_before_get_the_members_of_0013(upgraded_rows):
    url, _, before = upgraded_rows

    after = read_json(url)

    (revision,) = {task["revision"] for task in after.values()}
    assert [*before["open"]] == MEMBERS_OF_0011
    assert after == {
        title: task
        | DEFAULTS_OF_0014
        | {
            "completed_at": task["updated_at"] if task["completed"] else None,
            "position": after[title]["position"],
            "revision": revision,
        }
        for title, task in before.items()
    }
    in_order = sorted(before, key=lambda title: before[title]["created_at"])
    assert sorted(after, key=lambda title: after[title]["position"]) == in_order
    assert revision > max(task["revision"] for task in before.values())
    assert read_wrongly_rendered(url) == []


def test_version_before_writes_beside_the_upgraded_database(upgraded_rows):
    """Column grants allow each statement, and the trigger completes each row."""
    url, owner, _ = upgraded_rows
    values = {"owner": owner, "title": "new", "completed": True}

    for statement in (INSERT_OF_0011, *CHANGES_OF_0011):
        with psycopg.connect(url) as connection:
            connection.execute(SETTINGS_OF_0008, values)
            rows = connection.execute(statement, values).rowcount
        assert rows > 0, statement
        assert read_wrongly_rendered(url) == []
        for task in read_json(url).values():
            assert task.items() >= DEFAULTS_OF_0014.items()
            assert (task["completed_at"] is not None) == task["completed"]


def test_downgrade_to_the_version_before_removes_the_members_and_an_upgrade_adds_them(
    upgraded_rows,
):
    url, owner, before = upgraded_rows
    upgraded = read_json(url)
    execute(url, "UPDATE tasks SET labels = '{a}', label_keys = '{a}', due_date = '2026-11-21'")

    command.downgrade(configuration(url), "0011")
    downgraded = read_json(url)
    with psycopg.connect(url) as connection:
        connection.execute(SETTINGS_OF_0008, {"owner": owner})
        connection.execute(CHANGES_OF_0011[2], {"owner": owner})
    migrate(url)
    upgraded_again = read_json(url)

    changing = ("updated_at", "revision", "completed_at", "priority")
    assert [*downgraded["open"]] == MEMBERS_OF_0011
    for title, task in before.items():
        assert without(downgraded[title], changing) == without(task, changing)
        assert downgraded[title]["revision"] > upgraded[title]["revision"]
        assert without(upgraded_again[title], changing) == without(upgraded[title], changing)
        assert upgraded_again[title]["revision"] > downgraded[title]["revision"]
    assert read_wrongly_rendered(url) == []


def without(members, names):
    return {name: value for name, value in members.items() if name not in names}


def read_wrongly_rendered(url):
    rendered = rendered_row(TASK.table, TASK.field_names, "tasks")
    with psycopg.connect(url) as connection:
        return connection.execute(
            f"SELECT id, json FROM tasks WHERE json IS DISTINCT FROM {rendered}"
        ).fetchall()


def read_tasks(url, owner):
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT id, title, updated_at, created_at, attempt, revision FROM tasks"
            " WHERE user_id = %s ORDER BY id",
            (owner,),
        ).fetchall()


def remove_description(url):
    """Make the database as it was before tasks had a description."""
    with psycopg.connect(url, autocommit=True) as connection:
        (function,) = connection.execute(
            "SELECT pg_get_functiondef('write_tasks_row'::regproc)"
        ).fetchone()
        lines = [line for line in function.splitlines() if "NEW.description" not in line]
        connection.execute("\n".join(lines))
        connection.execute("ALTER TABLE tasks DROP COLUMN description")


@pytest.mark.slow
def test_generated_migration_has_the_next_number(new_database, alembic, tmp_path):
    url = new_database("generated")
    next_number = f"{int(SCHEMA_VERSION) + 1:04d}"
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    version_file = Path("todo_api", "db", "schema_version.py")
    (tmp_path / version_file).parent.mkdir(parents=True)
    shutil.copy(ROOT / version_file, tmp_path / version_file)
    before = (ROOT / version_file).read_text()
    migrate(url)
    execute(url, INSERT_TASK)
    remove_description(url)
    revision = read_revisions(url)

    assert_succeeds(
        alembic(
            *("revision", "--autogenerate", "--message", "Describe tasks"),
            cwd=tmp_path,
            DATABASE_URL=url,
        )
    )

    text = (tmp_path / "migrations" / "versions" / f"{next_number}_describe_tasks.py").read_text()
    assert f"revision = '{next_number}'\ndown_revision = '{SCHEMA_VERSION}'\n" in text
    assert "op.add_column('tasks', sa.Column('description', sa.Text()" in text
    upgrade, _, downgrade = text.partition("def downgrade()")
    assert "CREATE OR REPLACE FUNCTION write_tasks_row()" in upgrade
    assert "CREATE OR REPLACE FUNCTION public.write_tasks_row()" in downgrade
    assert_succeeds(alembic("upgrade", "head", cwd=tmp_path, DATABASE_URL=url))
    assert version(url) == next_number
    assert read_revisions(url) > revision, "a new member changes the JSON: it takes a revision"
    assert read_wrongly_rendered(url) == []
    assert f'SCHEMA_VERSION = "{next_number}"' in (tmp_path / version_file).read_text()
    assert (ROOT / version_file).read_text() == before


@pytest.mark.slow
def test_generated_migration_protects_a_new_resource(new_database, alembic, tmp_path):
    """The migration is generated for a database without the table `tasks`."""
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
    assert protected == (True, True, 3, 4)


@pytest.mark.slow
def test_offline_migrations_are_refused(alembic, database_url):
    process = alembic("upgrade", "head", "--sql", DATABASE_URL=database_url)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "they need a database, not --sql" in output
