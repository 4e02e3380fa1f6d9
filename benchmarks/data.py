"""What is measured on: a database with so many users and tasks, the same before each cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from joserfc import jwt
from joserfc.jwk import OctKey

from todo_api.commands.embedded import Cluster, temporary_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SECRET = "a-fake-secret-for-measurements-of-32-bytes"  # noqa: S105  it opens nothing

# Durable as in production. What a server does in its own time, it does between the cells.
OPTIONS = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "512MB",
    "max_connections": "250",
}

# Between two of a server's statements, no connection is at work either.
QUIET_LOOKS = 4

# Of a hundred requests of the mix. 70 of them read.
MIX = {"get": 45, "list": 25, "create": 12, "patch": 9, "complete": 6, "delete": 3}

# How many of a hundred requests of an operation change a task.
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
    """The id of a task; those of the first user come first."""
    return f"01900000-0000-7000-8000-{number:012}"


@dataclass(frozen=True)
class Size:
    """How much is in the database."""

    users: int
    tasks_per_user: int


@dataclass(frozen=True)
class Data:
    """A migrated database, its size as it is when it has been reset."""

    url: str
    cluster: Cluster

    def reset(self, size: Size) -> None:
        """Fill the tables anew, so that every cell finds the same, on the same pages."""
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
                    (size.tasks_per_user, size.users),
                )
                connection.execute(
                    """
                    INSERT INTO tasks
                        (user_id, id, title, description, created_at, updated_at, revision)
                    SELECT format('00000000-0000-4000-8000-%%s',
                                  lpad(((n - 1) / %(each)s + 1)::text, 12, '0'))::uuid,
                           format('01900000-0000-7000-8000-%%s', lpad(n::text, 12, '0'))::uuid,
                           'Buy oat milk, number ' || n,
                           'Two litres of the plain kind, and none of the ones with sugar in them.',
                           moment, moment, (n - 1) %% %(each)s + 1
                    FROM generate_series(1, %(all)s::bigint) AS n,
                         LATERAL (SELECT timestamptz '2026-01-01 00:00:00.123456Z'
                                         + n * interval '1 second') AS of (moment)
                    """,
                    {"each": size.tasks_per_user, "all": size.users * size.tasks_per_user},
                )
            connection.execute("VACUUM ANALYZE users, tasks")
            connection.execute("CHECKPOINT")

    def changes(self) -> int:
        """How many changes there have been; the trigger counts them, whoever makes them."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT sum(revision)::bigint FROM users").fetchone()
        assert row
        return int(row[0] or 0)

    def version(self) -> str:
        with psycopg.connect(self.url) as connection:
            number = connection.info.server_version
        return f"{number // 10000}.{number % 10000}"


def await_idle(connection: psycopg.Connection) -> None:
    """Wait until the last requests of a load, which a server still had, have been done."""
    quiet = 0
    for _ in range(400):
        busy = connection.execute(
            "SELECT FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND state <> 'idle' AND pid <> pg_backend_pid()"
        ).fetchall()
        quiet = 0 if busy else quiet + 1
        if quiet == QUIET_LOOKS:
            return
        time.sleep(0.02)
    raise TimeoutError("connections are still at work")


@contextmanager
def migrated() -> Iterator[Data]:
    """An embedded PostgreSQL with an empty database that has our schema.

    From now on a SIGTERM ends this process as Ctrl-C does, so that no server is left behind.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with temporary_cluster(options=OPTIONS) as cluster:
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
    """A token for each user, in their order, a line each."""
    path.write_text("".join(f"{token(user)}\n" for user in range(1, users + 1)))
