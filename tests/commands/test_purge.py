"""The purge deletes old trash and nothing else, with any role that may run it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.locks import wait_for_sessions
from tests.support.postgresql import as_login, backdate_deletion, execute, migrate
from todo_api.commands.purge import purge


def ids(connection, user_id):
    rows = connection.execute("SELECT id::text FROM tasks WHERE user_id = %s", (user_id,))
    return {row[0] for row in rows}


def test_only_old_trash_is_purged(client, make_task, connection, database_url, user_id):
    live, fresh, old = make_task(), make_task(), make_task()
    for deleted in (fresh, old):
        client.delete(deleted.url)
    backdate_deletion(connection, fresh, 29)
    backdate_deletion(connection, old, 31)

    purge(database_url)

    assert ids(connection, user_id) == {live["id"], fresh["id"]}


def test_purged_task_is_not_in_the_trash_and_cannot_be_restored(
    client, task, user_id, connection, database_url
):
    client.delete(task.url)
    backdate_deletion(connection, task, 31)
    before = client.get(f"/api/{user_id}/trash").json

    purge(database_url)

    assert [entry["id"] for entry in before] == [task["id"]]
    assert client.get(f"/api/{user_id}/trash").json == []
    assert client.post(f"{task.url}/restore").status_code == 404
    assert client.delete(task.url).status_code == 404


def test_purge_takes_no_revision(client, make_task, tasks_url, user_id, connection, database_url):
    old, live = make_task(), make_task()
    client.delete(old.url)
    backdate_deletion(connection, old, 31)
    before = client.get(tasks_url)
    query = "SELECT revision, purged_revision FROM users WHERE id = %s"
    ((revision, _),) = connection.execute(query, (user_id,))

    purge(database_url)

    unchanged = client.get(tasks_url, headers={"If-None-Match": before.headers["ETag"]})
    assert connection.execute(query, (user_id,)).fetchall() == [(revision, revision)]
    assert before.json == [live]
    assert unchanged.status_code == 304


def test_purge_of_nothing_changes_no_user(client, task, user_id, connection, database_url):
    client.delete(task.url)
    query = "SELECT to_jsonb(users) FROM users WHERE id = %s"
    before = connection.execute(query, (user_id,)).fetchall()

    purge(database_url)

    assert connection.execute(query, (user_id,)).fetchall() == before


def test_locked_rows_are_left_to_the_next_purge(
    client, make_task, user_id, connection, database_url
):
    """A purge that waited for a request could hold another row that the request waits for."""
    locked, free = make_task(), make_task()
    for deleted in (locked, free):
        client.delete(deleted.url)
        backdate_deletion(connection, deleted, 31)
    with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as threads:
        other.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (locked["id"],))
        pending = threads.submit(purge, database_url)
        try:
            pending.result(timeout=10)
        finally:
            other.rollback()
    after_first = ids(connection, user_id)

    purge(database_url)

    assert after_first == {locked["id"]}
    assert ids(connection, user_id) == set()


def test_purge_waits_for_an_owner_whose_revision_grows(
    client, task, user_id, connection, database_url
):
    """The purge writes the owner's row, and keeps the revision that it has by then."""
    client.delete(task.url)
    backdate_deletion(connection, task, 31)
    query = "SELECT revision, purged_revision FROM users WHERE id = %s"
    with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as threads:
        other.execute(
            "UPDATE users SET revision = revision + 7 WHERE id = %s RETURNING revision", (user_id,)
        )
        (before, _) = other.execute(query, (user_id,)).fetchone()
        pending = threads.submit(purge, database_url)
        wait_for_sessions(database_url, lambda: 1)
        other.commit()
        pending.result(timeout=30)

    assert ids(connection, user_id) == set()
    assert connection.execute(query, (user_id,)).fetchall() == [(before, before - 7)]


def test_purge_in_batches_deletes_all(connection, database_url, user_id):
    connection.execute("SET session_replication_role = replica")
    connection.execute("INSERT INTO users (id, revision) VALUES (%s, 20)", (user_id,))
    connection.execute(
        """
        INSERT INTO tasks (user_id, id, title, revision, deleted_at)
        SELECT %s, gen_random_uuid(), 'Old', number, '2020-01-01' FROM generate_series(1, 20) number
        """,
        (user_id,),
    )
    connection.execute("RESET session_replication_role")

    assert purge(database_url, batch=7)[0] >= 20

    assert ids(connection, user_id) == set()
    (row,) = connection.execute(
        "SELECT purged_revision, revision FROM users WHERE id = %s", (user_id,)
    )
    assert row == (20, 20)


@pytest.mark.parametrize("attributes", ["", "CREATEROLE"])
def test_unprivileged_owner_of_the_tables_can_purge(
    new_database, new_login, server, database_url, attributes
):
    """Row-level security is forced: a plain DELETE of the owner would find no row."""
    assert database_url  # its migrations have created the roles
    login = new_login("purger", "CREATEROLE")
    url = new_database("purge", login)
    execute(server, f"GRANT todo_app, todo_maintenance TO {login}")
    owner_url = as_login(url, login)
    migrate(owner_url)
    if not attributes:
        execute(server, f"ALTER ROLE {login} NOCREATEROLE")
    execute(
        url,
        """
        SET session_replication_role = replica;
        INSERT INTO users (id, revision) VALUES ('00000000-0000-7000-8000-000000000001', 5);
        INSERT INTO tasks (user_id, id, title, revision, deleted_at)
        SELECT id, id, 'Old', 5, '2020-01-01' FROM users
        """,
    )

    assert purge(owner_url) == (1, 0)
    assert purge(owner_url) == (0, 0)


def test_command_logs_the_purge(database_url, request):
    process = subprocess.run(
        [sys.executable, "-m", "todo_api.commands.purge"],
        cwd=request.config.rootpath,
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert '"event":"purge finished"' in process.stderr
