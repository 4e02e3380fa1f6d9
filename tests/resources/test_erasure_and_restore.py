"""After an erasure or a restore, ETags, tokens and keys from before are not valid."""

from __future__ import annotations

import random
import subprocess
import uuid
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise

import psycopg
import pytest
from psycopg import sql

from tests.support.postgresql import migrate
from tests.support.remembering_client import RememberingClient
from todo_api.commands.embedded import EmbeddedError, find_account
from todo_api.commands.embedded.programs import find_programs
from todo_api.commands.restored import set_new_epoch

SEED = 29
CHECKS = 10_000  # reads and writes of what is remembered
LIVES = 20
MOST_TOKENS = 30  # that are tried after each erasure
USERS = 4
PROGRAMS_VERSION = 18

pytestmark = pytest.mark.slow


def test_nothing_of_an_erased_user_is_valid_for_the_next_one(app, connection, user_id, count):
    checks = count(CHECKS, 400) // LIVES
    choose = random.Random(SEED)
    client = RememberingClient(app.test_client(), connection, choose, user_id)
    revisions = []

    for _ in range(LIVES):
        for _ in range(20):
            client.act()
        revisions.append(set(client.live_revisions().values()))
        lost = choose.sample(client.tokens, min(len(client.tokens), MOST_TOKENS))
        client.erase()
        for _ in range(checks // 10):
            client.check_read()
            client.check_write()
        for _ in client.ids:
            client.create()
        client.check_tokens_are_gone(lost)
        client.follow("0", {})
        token, copy = client.tokens[-1]
        assert client.follow(token, dict(copy))
        client.counts["token", "followed"] += 1
        for _ in range(checks):
            client.act() if choose.random() < 0.1 else client.check()
        del client.tokens[:-50]

    ends = [(min(life), max(life)) for life in revisions if life]
    assert all(before[1] < after[0] for before, after in pairwise(ends))
    assert client.counts["read", 304] > 0
    assert client.counts["write", 412] > 0
    assert client.counts["token", "followed"] > 0
    assert client.counts["key", "created"] > 0


@pytest.mark.parametrize("way", ["one transaction", "a transaction for each task"])
def test_nothing_of_an_erased_user_with_many_tasks_is_valid_for_the_next_one(
    app, connection, database_url, user_id, count, way
):
    rows = count(10_000)
    choose = random.Random(SEED)
    client = RememberingClient(app.test_client(), connection, choose, user_id, page_limits=[200])
    client.create()
    insert_rows(database_url, user_id, rows, at_once=way == "one transaction")
    for _ in range(3):
        client.sync()
        client.read_list()
    lost = list(client.tokens)
    revisions = set(client.live_revisions().values())
    assert len(revisions) == 1 + (1 if way == "one transaction" else rows)

    client.erase()
    response = app.test_client().post(
        f"{client.url}/tasks", json={"id": client.ids[0], "title": "New"}
    )

    assert response.json["revision"] > max(revisions)
    client.check_tokens_are_gone(lost)
    for _ in range(100):
        client.check()
    assert client.counts["read", 200] > 0


def insert_rows(url, user_id, rows, *, at_once):
    """Insert tasks as the role of requests, in one transaction or in one for each task."""
    with psycopg.connect(url, autocommit=not at_once) as connection:
        connection.execute("SELECT set_config('role', 'todo_app', %s)", (at_once,))
        connection.execute("SELECT set_config('todo.user_id', %s, %s)", (user_id, at_once))
        insert = "INSERT INTO tasks (user_id, id, title, completed) SELECT %s, gen_random_uuid(), "
        if at_once:
            connection.execute(
                insert + "'Row ' || n, false FROM generate_series(1, %s) AS n", (user_id, rows)
            )
        else:
            for _ in range(rows):
                connection.execute(insert + "'Row', false", (user_id,))


@pytest.fixture
def back_up(server, new_database, tmp_path):
    """Return a function that backs up a database, and returns one that restores it into another.

    pg_dump writes the backup; without it, the backup is a copy of the database.
    """

    def back_up_by_pg_dump(url, programs):
        backup = tmp_path / "backup"
        run(programs / "pg_dump", "--format=custom", "--no-sync", f"--file={backup}", url)

        def restore():
            restored = new_database("restored")
            run(programs / "pg_restore", "--exit-on-error", f"--dbname={restored}", backup)
            return restored

        return restore

    def back_up_by_template(url):
        copy = copy_database(url)
        return lambda: copy_database(copy)

    def copy_database(url):
        copy = new_database("backup")
        names = [psycopg.conninfo.conninfo_to_dict(each)["dbname"] for each in (copy, url)]
        target, source = map(sql.Identifier, names)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {}").format(target))
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(target, source))
        return copy

    def make(url):
        with psycopg.connect(server) as connection:
            version = connection.info.server_version // 10_000
        try:
            programs = find_programs(PROGRAMS_VERSION, find_account())
        except EmbeddedError:
            programs = None
        if programs and version <= PROGRAMS_VERSION:
            return back_up_by_pg_dump(url, programs)
        return back_up_by_template(url)

    return make


def run(*command):
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_nothing_of_a_lost_history_is_valid_after_a_restore(make_app, new_database, back_up, count):
    checks = count(CHECKS, 400)
    choose = random.Random(SEED)
    url = new_database("lost")
    migrate(url)
    with ExitStack() as stack:
        clients = open_clients(make_app, stack, url, choose)
        # The last user has nothing in the backup, the first one is erased after it.
        for client in clients[:-1]:
            for _ in range(40):
                client.act()
        stack.close()
        restore = back_up(url)
        stored = [dict(client.stored) for client in clients]

        connect(clients, make_app, stack, url)
        for client in clients:
            for _ in range(40):
                client.act()
        clients[0].erase()
        clients[0].create()

        stack.close()
        restored = restore()
        set_new_epoch(restored)
        connect(clients, make_app, stack, restored)
        for client, responses in zip(clients, stored, strict=True):
            client.stored = responses
            lost = list(client.tokens)
            for _ in range(checks // 50):
                client.check_read()
            client.check_tokens_are_gone(lost)
            client.tokens.clear()
            client.sync()
            client.tokens += lost
        for _ in range(checks):
            client = choose.choice(clients)
            client.act() if choose.random() < 0.1 else client.check()
        for client in clients:
            assert client.follow("0", {})

    counts = sum((client.counts for client in clients), Counter())
    assert counts["read", 304] > 0
    assert counts["write", 412] > 0
    assert counts["write to its base"] > 0
    assert counts["token", 410] > 0
    assert counts["key", "replayed"] > 0
    assert counts["key", "created"] > 0


def open_clients(make_app, stack, url, choose):
    app, connection = open_app(make_app, stack, url)
    return [
        RememberingClient(app.test_client(), connection, choose, str(uuid.uuid4()))
        for _ in range(USERS)
    ]


def connect(clients, make_app, stack, url):
    """Let the clients go on with an application on another database."""
    app, connection = open_app(make_app, stack, url)
    for client in clients:
        client.client, client.connection = app.test_client(), connection


def open_app(make_app, stack, url):
    """Return an application on the database, and a superuser's connection to it."""
    app = make_app(DATABASE_URL=url)
    stack.callback(app.services.pool.close)
    return app, stack.enter_context(psycopg.connect(url, autocommit=True))
