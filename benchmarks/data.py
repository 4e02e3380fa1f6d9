"""The database of the benchmarks, with the same users and tasks before each measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from joserfc import jwt
from joserfc.jwk import OctKey
from psycopg import sql

from todo_api.commands.embedded import Cluster, temporary_cluster
from todo_api.commands.embedded.postmaster import read_postmaster
from todo_api.lists.fields import INBOX, LIST
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
SECRET = "a-fake-secret-for-measurements-of-32-bytes"  # noqa: S105  only the benchmarks use it

# Durable as in production. `reset` vacuums and writes checkpoints between the measurements, so
# PostgreSQL's own background work is off.
OPTIONS = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "512MB",
    "max_connections": "250",
}

# The database counts as idle after this number of checks in a row without a busy connection. One
# check is not enough: a connection is also idle between two statements of a server.
IDLE_CHECKS = 4

# The operations of 100 requests of the mix: 70 of them read.
MIX = {"get": 45, "list": 25, "create": 12, "patch": 9, "complete": 6, "delete": 3}

# What creates and patches send: all members that requests write, but not whether the task is
# completed. %d is a number that differs in each request.
SENT_MEMBERS = {
    "title": "Buy oat milk, change %d",
    "description": "Two litres, and none with sugar in it.",
    "priority": "high",
    "labels": ["errand", "shop"],
    "due_date": "2026-11-21",
    "due_time": "09:30:00",
    "time_zone": "Europe/Berlin",
    "start_date": "2026-11-20",
    "metadata": {"source": "mail", "thread": "change-%d"},
}
# The moment of the three members of the due date.
SENT_DUE_AT = "2026-11-21T08:30:00.000000Z"

# The number of writes in 100 requests of an operation.
WRITES = {
    "get": 0,
    "list": 0,
    "not_modified": 0,
    "create": 100,
    "patch": 100,
    "complete": 100,
    "delete": 100,
    "mix": 100 - MIX["get"] - MIX["list"],
}


def user_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def task_id(number: int) -> str:
    """Return the id of a task. The first numbers are the tasks of the first user."""
    return f"01900000-0000-7000-8000-{number:012}"


def list_id(user: int) -> str:
    """Return the id of the list of a user that has half of the tasks, if there are lists."""
    return f"01900000-0000-7000-9000-{user:012}"


@dataclass(frozen=True)
class Size:
    """The number of rows in the database.

    Without lists, all tasks are in the Inbox, and none of them is a subtask. With lists, half of
    the tasks are in one list, and nine of ten tasks of the list are subtasks. Each user also has an
    archived list without tasks. The number of tasks of each user then is a multiple of SUBTASKS_OF.
    """

    users: int
    tasks_per_user: int
    has_lists: bool = False


# Every task whose number is a multiple of this one is completed.
COMPLETED_EACH = 4

# With lists, every second task is in the list. Each task whose number is a multiple of this one is
# the parent of the nine tasks of the list before it.
SUBTASKS_OF = 20

# Positions have another order than that of creation: this prime divides no number of tasks.
STRIDE = 7919

# The members of each task, all of them set. `n` is the number of the
# task, and `moment` the time of its creation. The tasks of one user are due on 730 days.
MEMBERS = f"""
    'Buy oat milk, number ' || n AS title,
    'Two litres of the plain kind, and none of the ones with sugar in them.' AS description,
    n %% {COMPLETED_EACH} = 0 AS completed,
    CASE WHEN n %% {COMPLETED_EACH} = 0 THEN moment + interval '1 day' END AS completed_at,
    (ARRAY['none', 'low', 'medium', 'high'])[n / {COMPLETED_EACH} %% 4 + 1] AS priority,
    ARRAY['errand', 'shop ' || n %% 10] AS labels,
    due_date,
    time '09:30' + n %% 8 * interval '1 hour' AS due_time,
    'Europe/Berlin' AS time_zone,
    timezone('Europe/Berlin', due_date + time '09:30' + n %% 8 * interval '1 hour') AS due_at,
    due_date - 1 AS start_date,
    jsonb_build_object('source', 'mail', 'thread', 'message-' || n) AS metadata,
    ARRAY['errand', 'shop ' || n %% 10] AS label_keys
"""

# No trigger writes these rows, so this statement writes what the trigger would: the columns of the
# subquery have the names of those of `tasks`.
INSERT_TASKS = f"""
    INSERT INTO tasks
        (user_id, id, title, description, completed, completed_at, priority, labels, due_date,
         due_time, time_zone, due_at, start_date, metadata, label_keys, created_at, updated_at,
         revision, list_id, parent_id, position, due_sort, place, json)
    SELECT task.*, due_date + due_time, coalesce(list_id, '{INBOX}'),
           {rendered_row(TASK.table, TASK.field_names, "task")}
    FROM (
        SELECT format('00000000-0000-4000-8000-%%s',
                      lpad(((n - 1) / %(each)s + 1)::text, 12, '0'))::uuid AS user_id,
               format('01900000-0000-7000-8000-%%s', lpad(n::text, 12, '0'))::uuid AS id,
               {MEMBERS},
               moment AS created_at, moment AS updated_at,
               %(first)s + (n - 1) %% %(each)s + 1 AS revision,
               CASE WHEN %(has_lists)s AND n %% 2 = 0 THEN
                   format('01900000-0000-7000-9000-%%s',
                          lpad(((n - 1) / %(each)s + 1)::text, 12, '0'))::uuid
               END AS list_id,
               CASE WHEN %(has_lists)s AND n %% 2 = 0 AND n %% {SUBTASKS_OF} <> 0 THEN
                   format('01900000-0000-7000-8000-%%s',
                          lpad((n + {SUBTASKS_OF} - n %% {SUBTASKS_OF})::text, 12, '0'))::uuid
               END AS parent_id,
               order_key_of(first + n * {STRIDE} %% %(all)s::bigint * interval '1 second')
                   AS position
        FROM generate_series(1, %(all)s::bigint) AS n,
             LATERAL (SELECT timestamptz '2026-01-01 00:00:00.123456Z',
                             date '2026-01-01' + (n * 37 %% 730)::int) AS of (first, due_date),
             LATERAL (SELECT first + n * interval '1 second') AS at (moment)
    ) AS task
"""  # noqa: S608  constants of this project

# For each user the list of tasks, and an archived one, whose id begins like that of no task.
INSERT_LISTS = f"""
    INSERT INTO lists
        (user_id, id, name, color, archived, metadata, created_at, updated_at, revision, position,
         json)
    SELECT list.user_id, list.id, name, color, archived, metadata, created_at, updated_at, revision,
           position, {rendered_row(LIST.table, LIST.field_names, "list")}
    FROM (
        SELECT format('00000000-0000-4000-8000-%%s', number)::uuid AS user_id,
               format('01900000-0000-7000-%%s-%%s', of.digits, number)::uuid AS id,
               'Groceries' AS name, of.digits = 'a000' AS archived, NULL::text AS color,
               '{{}}'::jsonb AS metadata, moment AS created_at, moment AS updated_at,
               %(first)s AS revision, order_key_of(moment) AS position
        FROM generate_series(1, %(users)s) AS n, lpad(n::text, 12, '0') AS number,
             (VALUES ('9000'), ('a000')) AS of (digits),
             (VALUES (timestamptz '2026-01-01 00:00:00.123456Z')) AS at (moment)
    ) AS list
"""  # noqa: S608  constants of this project

# Ahead of the clock, so that the trigger counts: each change takes the previous number plus 1.
FIRST_REVISION = 2**52


@dataclass(frozen=True)
class Data:
    """A migrated database; `reset` fills it."""

    url: str
    cluster: Cluster

    def reset(self, size: Size) -> None:
        """Fill the tables again, so that each measurement starts with the same rows and pages."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            await_idle(connection)
            with connection.transaction():
                connection.execute("SET LOCAL session_replication_role = replica")  # no triggers
                connection.execute("TRUNCATE users CASCADE")
                connection.execute(
                    """
                    INSERT INTO users (id, revision)
                    SELECT format('00000000-0000-4000-8000-%%s', lpad(n::text, 12, '0'))::uuid, %s
                    FROM generate_series(1, %s) AS n
                    """,
                    (FIRST_REVISION + size.tasks_per_user, size.users),
                )
                insert_tasks(connection, size)
                if size.has_lists:
                    connection.execute(INSERT_LISTS, {"users": size.users, "first": FIRST_REVISION})
            connection.execute("VACUUM ANALYZE users, tasks, lists")
            connection.execute("CHECKPOINT")

    def cpu(self) -> float:
        """Return the CPU time of all processes of PostgreSQL in seconds, also of ended ones."""
        postmaster = read_postmaster(self.cluster.data)
        assert postmaster
        # If a process ends meanwhile, its time moves to the postmaster: read all again.
        while True:
            own = read_stat(Path(f"/proc/{postmaster.pid}"))[11:15]
            children = 0
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    fields = read_stat(folder)
                    if fields[1] == str(postmaster.pid):
                        children += int(fields[11]) + int(fields[12])
            if read_stat(Path(f"/proc/{postmaster.pid}"))[13:15] == own[2:]:
                return (children + sum(map(int, own))) / os.sysconf("SC_CLK_TCK")

    def changes(self) -> int:
        """Return the sum of what the revisions are above the first one: 1 more for each change."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(
                "SELECT sum(revision - %s)::bigint FROM users", (FIRST_REVISION,)
            ).fetchone()
        assert row
        return int(row[0] or 0)

    def version(self) -> str:
        with psycopg.connect(self.url) as connection:
            number = connection.info.server_version
        return f"{number // 10000}.{number % 10000}"


def insert_tasks(connection: psycopg.Connection, size: Size) -> None:
    """Insert the tasks. The first call for a size saves a copy of them, which the others read."""
    kind = "with_lists" if size.has_lists else "without_lists"
    name = f"saved_{size.users}_{size.tasks_per_user}_{kind}"
    saved = sql.Identifier(name)
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (name,)).fetchone()
    if row and row[0]:
        connection.execute(sql.SQL("INSERT INTO tasks SELECT * FROM {}").format(saved))
        return
    connection.execute(
        INSERT_TASKS,
        {
            "each": size.tasks_per_user,
            "all": size.users * size.tasks_per_user,
            "first": FIRST_REVISION,
            "has_lists": size.has_lists,
        },
    )
    connection.execute(sql.SQL("CREATE UNLOGGED TABLE {} AS TABLE tasks").format(saved))


def read_stat(folder: Path) -> list[str]:
    """Return the fields of /proc/PID/stat after the name of the process (man 5 proc)."""
    return (folder / "stat").read_text().rpartition(") ")[2].split()


def await_idle(connection: psycopg.Connection) -> None:
    """Wait until the servers have executed the last requests of a load."""
    idle_checks = 0
    for _ in range(400):
        busy = connection.execute(
            "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND state <> 'idle' AND pid <> pg_backend_pid()"
        ).fetchall()
        idle_checks = 0 if busy else idle_checks + 1
        if idle_checks == IDLE_CHECKS:
            return
        time.sleep(0.02)
    raise TimeoutError("Connections to the database are still busy.")


@contextmanager
def migrated(options: Mapping[str, str] | None = None) -> Iterator[Data]:
    """Run an embedded PostgreSQL with an empty database that has the schema of this API.

    `options` are more settings of PostgreSQL.

    It makes SIGTERM end this process as Ctrl-C does, so that the process stops its servers.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with temporary_cluster(options={**OPTIONS, **(options or {})}) as cluster:
        url = cluster.create_database("bench")
        subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env=os.environ | {"DATABASE_URL": url, "MIGRATION_DATABASE_URL": url},
            capture_output=True,
            check=True,
        )
        yield Data(url, cluster)


def token(user: int) -> str:
    claims = {"sub": user_id(user), "exp": int(time.time()) + 24 * 3600}
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


def write_tokens(path: Path, users: int) -> None:
    """Write a token for each user, in the order of their numbers, one in each line."""
    path.write_text("".join(f"{token(user)}\n" for user in range(1, users + 1)))
