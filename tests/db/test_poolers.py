"""As on Neon: a PgBouncer in transaction mode, with fewer connections than it has clients."""

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

from fault_injection.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.postgresql import execute, migrate
from todo_api.commands.purge import purge
from todo_api.db.database import Database
from todo_api.db.statement import compiled

needs_pgbouncer = pytest.mark.skipif(
    PGBOUNCER is None, reason="Debian's package pgbouncer is not here"
)

WHO = compiled(
    select(
        func.pg_backend_pid(),
        literal_column("current_user"),
        func.current_setting(literal_column("'todo.user_id'")),
    )
)
DIVIDE_BY_NOTHING = compiled(select(literal_column("1 / 0")))

LEFT_BEHIND = """
    SELECT pg_backend_pid(), current_user = session_user,
           nullif(current_setting('todo.user_id', true), ''),
           current_setting('statement_timeout'), current_setting('plan_cache_mode')
"""


class Found(NamedTuple):
    """What the last transaction on a connection to the server has left there."""

    backend: int
    login_is_role: bool
    user_id: str | None
    statement_timeout: str
    plan_cache_mode: str


NOTHING = Found(0, login_is_role=True, user_id=None, statement_timeout="0", plan_cache_mode="auto")


@pytest.fixture
def bouncer(database_url):
    with pgbouncer(database_url, pool_size=3) as running:
        yield running


@needs_pgbouncer
def test_users_who_race_through_three_connections_meet_nothing_of_each_other(
    make_app, bouncer, count
):
    app = make_app(DATABASE_URL=bouncer.url, DATABASE_PREPARE="false", WEB_THREADS="16")
    database = Database(app.services.pool, deadline=time.monotonic() + 120)
    one, other = (str(uuid.uuid4()) for _ in range(2))
    latest = {user: str(uuid.uuid4()) for user in (one, other)}
    connections_of = {user: set() for user in (one, other)}
    over = threading.Event()

    def work(mine, theirs):
        client = app.test_client()
        url = f"/api/{mine}/tasks"
        for number in range(count(500)):
            task = client.post(url, json={"title": mine}).json
            latest[mine] = task["id"]
            shown = client.get(f"{url}?limit=5").json
            changed = client.patch(f"{url}/{task['id']}", json={"title": f"{mine} {number}"})
            foreign = client.patch(f"{url}/{latest[theirs]}", json={"title": mine})
            backend, *who = database.one(uuid.UUID(mine), WHO)
            with pytest.raises(psycopg.errors.DivisionByZero):
                database.one(uuid.UUID(mine), DIVIDE_BY_NOTHING)

            assert {each["user_id"] for each in shown} == {mine}
            assert all(each["title"].startswith(mine) for each in shown)
            assert (changed.status_code, foreign.status_code) == (200, 404)
            assert who == ["todo_app", mine]
            connections_of[mine].add(backend)

    def watch():
        """What a stranger on the same connections meets between two requests."""
        seen = set()
        with psycopg.connect(bouncer.url, autocommit=True, prepare_threshold=None) as connection:
            while not over.is_set():
                seen.add(look(connection))
        return seen

    with ThreadPoolExecutor(9) as threads:
        watcher = threads.submit(watch)
        racers = [threads.submit(work, *pair) for pair in [(one, other), (other, one)] * 4]
        try:
            for racer in racers:
                racer.result(timeout=120)
        finally:
            over.set()
        met = watcher.result(timeout=10)

    assert len(connections_of[one] | connections_of[other]) <= 3
    assert connections_of[one] & connections_of[other], "they shared a connection"
    assert {found.backend for found in met} & connections_of[one]
    assert {found._replace(backend=0) for found in met} == {NOTHING}


def look(connection):
    return Found(*connection.execute(LEFT_BEHIND).fetchone())


@needs_pgbouncer
def test_a_pooler_that_carries_no_prepared_statements_hands_them_to_the_next(database_url):
    """Why DATABASE_PREPARE has to be false there."""
    version = subprocess.run([PGBOUNCER, "-V"], capture_output=True, text=True, check=True).stdout
    if [int(part) for part in re.search(r"(\d+)\.(\d+)", version).groups()] >= [1, 21]:
        pytest.skip("this PgBouncer may carry them")

    def ask(prepare_threshold):
        """Two clients of one connection to the server, each with a statement of its own."""
        for number in (1, 2):
            connection = psycopg.connect(
                bouncer.url, autocommit=True, prepare_threshold=prepare_threshold
            )
            with connection:
                connection.execute(f"SELECT {number}")

    with pgbouncer(database_url, pool_size=1) as bouncer:
        ask(None)
        with pytest.raises(psycopg.errors.DuplicatePreparedStatement):
            ask(0)


@needs_pgbouncer
def test_migrations_and_purges_get_through_a_pooler(new_database, server, user_id):
    """The direct URL is the better one, but whoever has set no other has not broken anything."""
    direct = new_database("pooled")
    with pgbouncer(server, pool_size=1) as bouncer:
        url = bouncer.pooled_url(direct)
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
