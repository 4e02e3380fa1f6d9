"""PgBouncer in transaction mode, as on Neon, with fewer connections than clients."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import psycopg
import pytest
from sqlalchemy import func, literal_column, select

from faults.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.postgresql import execute, migrate
from todo_api.commands.purge import purge
from todo_api.db.database import Database
from todo_api.db.statement import compiled

needs_pgbouncer = pytest.mark.skipif(
    PGBOUNCER is None, reason="Debian's package pgbouncer is not installed"
)

IDENTITY = compiled(
    select(
        func.pg_backend_pid(),
        literal_column("current_user"),
        func.current_setting(literal_column("'todo.user_id'")),
    )
)
DIVIDE_BY_ZERO = compiled(select(literal_column("1 / 0")))

SESSION_STATE = """
    SELECT pg_backend_pid(), current_user = session_user,
           nullif(current_setting('todo.user_id', true), ''),
           current_setting('statement_timeout'), current_setting('plan_cache_mode')
"""


class SessionState(NamedTuple):
    """The state of a server connection after its last transaction."""

    backend: int
    login_is_role: bool
    user_id: str | None
    statement_timeout: str
    plan_cache_mode: str


INITIAL_STATE = SessionState(
    0, login_is_role=True, user_id=None, statement_timeout="0", plan_cache_mode="auto"
)


@pytest.fixture
def bouncer(database_url):
    with pgbouncer(database_url, pool_size=3) as running:
        yield running


@needs_pgbouncer
def test_concurrent_users_of_three_connections_do_not_see_each_other(make_app, bouncer, count):
    app = make_app(DATABASE_URL=bouncer.url, DATABASE_PREPARE="false", WEB_THREADS="16")
    database = Database(app.services.pool, deadline=time.monotonic() + 120)
    one, other = (str(uuid.uuid4()) for _ in range(2))
    latest = {user: str(uuid.uuid4()) for user in (one, other)}
    connections_of = {user: set() for user in (one, other)}
    finished = threading.Event()

    def work(owner, other_owner):
        client = app.test_client()
        url = f"/api/{owner}/tasks"
        for number in range(count(500)):
            task = client.post(url, json={"title": owner}).json
            latest[owner] = task["id"]
            listed = client.get(f"{url}?limit=5").json
            changed = client.patch(f"{url}/{task['id']}", json={"title": f"{owner} {number}"})
            foreign = client.patch(f"{url}/{latest[other_owner]}", json={"title": owner})
            backend, *identity = database.one(uuid.UUID(owner), IDENTITY)
            with pytest.raises(psycopg.errors.DivisionByZero):
                database.one(uuid.UUID(owner), DIVIDE_BY_ZERO)

            assert {task["user_id"] for task in listed} == {owner}
            assert all(task["title"].startswith(owner) for task in listed)
            assert (changed.status_code, foreign.status_code) == (200, 404)
            assert identity == ["todo_app", owner]
            connections_of[owner].add(backend)

    def watch():
        """Read the state of the same connections as another client, between two requests."""
        states = set()
        with psycopg.connect(bouncer.url, autocommit=True, prepare_threshold=None) as connection:
            while not finished.is_set():
                states.add(read_state(connection))
        return states

    with ThreadPoolExecutor(9) as threads:
        watcher = threads.submit(watch)
        racers = [threads.submit(work, *pair) for pair in [(one, other), (other, one)] * 4]
        try:
            for racer in racers:
                racer.result(timeout=120)
        finally:
            finished.set()
        states = watcher.result(timeout=10)

    assert len(connections_of[one] | connections_of[other]) <= 3
    assert connections_of[one] & connections_of[other], "no connection served both users"
    assert {state.backend for state in states} & connections_of[one]
    assert {state._replace(backend=0) for state in states} == {INITIAL_STATE}


def read_state(connection):
    return SessionState(*connection.execute(SESSION_STATE).fetchone())


@needs_pgbouncer
def test_old_pooler_shows_prepared_statements_to_other_clients(database_url):
    """PgBouncer before 1.21 needs DATABASE_PREPARE=false."""
    version = subprocess.run([PGBOUNCER, "-V"], capture_output=True, text=True, check=True).stdout
    if [int(part) for part in re.search(r"(\d+)\.(\d+)", version).groups()] >= [1, 21]:
        pytest.skip("this version of PgBouncer supports prepared statements")

    def run_clients(prepare_threshold):
        """Run a different statement in each of two clients that share a server connection."""
        for number in (1, 2):
            connection = psycopg.connect(
                bouncer.url, autocommit=True, prepare_threshold=prepare_threshold
            )
            with connection:
                connection.execute(f"SELECT {number}")

    with pgbouncer(database_url, pool_size=1) as bouncer:
        run_clients(None)
        with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
            run_clients(0)


@needs_pgbouncer
def test_migrations_and_purges_work_through_a_pooler(new_database, server, user_id):
    """A direct URL is recommended, but the URL of the pooler works, too."""
    direct = new_database("pooled")
    with pgbouncer(server, pool_size=1) as bouncer:
        url = bouncer.through(direct)
        for revision in ("head", "base", "head"):
            migrate(url, revision)
        for _ in range(2):
            execute(direct, OLD_TRASH.format(user_id))
            assert purge(url, batch=1) == (9, 0)


OLD_TRASH = """
    SET session_replication_role = replica;
    INSERT INTO users (id, revision) VALUES ('{0}', 9) ON CONFLICT DO NOTHING;
    INSERT INTO tasks (user_id, id, title, revision, deleted_at)
    SELECT '{0}', gen_random_uuid(), 'Old', number, '2020-01-01' FROM generate_series(1, 9) number
"""
