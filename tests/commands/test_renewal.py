"""The renewal: new revisions for all rows, owner by owner, while servers run."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.api import Device, Task
from tests.support.locks import wait_for_sessions
from tests.support.postgresql import as_login, at_database, execute, migrate
from todo_api.commands.renewal import renew_revisions

TABLES = ["tasks"]
FIRST, SECOND, THIRD = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "26d")
REQUEST_RENEWAL = """
    UPDATE database_state SET renewal_position = '00000000-0000-0000-0000-000000000000'
"""


@pytest.fixture(scope="module")
def url(new_database, new_login, server, database_url):
    """The URL of a database whose tables belong to an unprivileged login, with that login."""
    assert database_url  # its migrations have created the roles
    login = new_login("renewer")
    execute(server, f"GRANT todo_app, todo_maintenance TO {login}")
    owner_url = as_login(new_database("renewal", login), login)
    migrate(owner_url)
    return owner_url


@pytest.fixture
def superuser(server, url):
    """A superuser's connection to the database, which has no users yet."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(at_database(server, name), autocommit=True) as connection:
        connection.execute("TRUNCATE users CASCADE")
        connection.execute("UPDATE database_state SET renewal_position = NULL")
        yield connection


@pytest.fixture
def client(make_app, url, superuser):  # noqa: ARG001  superuser removes the users of other tests
    return make_app(DATABASE_URL=url, WEB_THREADS="16").test_client()


@pytest.fixture
def make_tasks(client):
    """Return a function that creates tasks of a user, of which the last one is in the trash."""

    def make(user_id, count=3):
        responses = [
            client.post(f"/api/{user_id}/tasks", json={"title": f"Task {number}"})
            for number in range(count)
        ]
        tasks = [Task(response.json) for response in responses]
        assert client.delete(tasks[-1].url).status_code == 204
        return tasks

    return make


def read_rows(connection, user_id):
    """Return the columns of the tasks except revision and JSON, and the set of the revisions."""
    rows = connection.execute(
        """
        SELECT to_jsonb(tasks) - 'revision' - 'json', revision FROM tasks
        WHERE user_id = %s ORDER BY id
        """,
        (user_id,),
    ).fetchall()
    return [row for row, _ in rows], {revision for _, revision in rows}


def read_counter(connection, user_id):
    rows = connection.execute("SELECT revision FROM users WHERE id = %s", (user_id,))
    return rows.fetchone()[0]


def read_position(connection):
    return connection.execute("SELECT renewal_position::text FROM database_state").fetchone()[0]


def test_nothing_is_renewed_if_no_migration_asks_for_it(url, superuser, make_tasks):
    make_tasks(FIRST)
    before = read_rows(superuser, FIRST), read_counter(superuser, FIRST)

    owners = renew_revisions(url, TABLES)

    assert owners == 0
    assert (read_rows(superuser, FIRST), read_counter(superuser, FIRST)) == before


def test_rows_of_an_owner_share_a_new_revision(url, superuser, make_tasks):
    """`attempt` stays, too: a write that is in doubt is still recognised."""
    users = [str(uuid.UUID(int=0)), FIRST, str(uuid.UUID(int=2**128 - 1))]
    for user_id in users:
        make_tasks(user_id)
    before = {user_id: read_rows(superuser, user_id) for user_id in users}
    superuser.execute(REQUEST_RENEWAL)

    owners = renew_revisions(url, TABLES)

    assert owners == 3
    assert read_position(superuser) is None
    for user_id, (rows, revisions) in before.items():
        renewed_rows, renewed = read_rows(superuser, user_id)
        assert renewed_rows == rows
        assert all(row["attempt"] for row in rows)
        assert renewed == {read_counter(superuser, user_id)}
        assert min(renewed) > max(revisions)
    assert renew_revisions(url, TABLES) == 0


def test_earlier_etags_and_pages_are_outdated(client, url, superuser, make_tasks):
    task, *_ = make_tasks(FIRST)
    tasks_url = f"/api/{FIRST}/tasks"
    page = client.get(tasks_url)
    superuser.execute(REQUEST_RENEWAL)

    renew_revisions(url, TABLES)

    read = client.get(task.url, headers={"If-None-Match": task.etag})
    listed = client.get(tasks_url, headers={"If-None-Match": page.headers["ETag"]})
    refused = client.patch(task.url, json={"title": "x"}, headers={"If-Match": task.etag})
    assert read.status_code == listed.status_code == 200
    assert read.json == task | {"revision": read_counter(superuser, FIRST)}
    assert (refused.status_code, refused.json["current"]) == (412, read.json)


@pytest.mark.parametrize("limit", [1, 200])
def test_device_receives_every_renewed_task(client, url, superuser, make_tasks, limit):
    make_tasks(FIRST, count=5)
    device = Device(client, f"/api/{FIRST}/changes", limit)
    before = dict(device.sync())
    superuser.execute(REQUEST_RENEWAL)

    renew_revisions(url, TABLES)

    revision = read_counter(superuser, FIRST)
    assert len(before) == 4
    assert device.sync() == {
        task_id: task | {"revision": revision} for task_id, task in before.items()
    }
    assert device.restarts == 0


def test_owner_without_tasks_is_skipped(url, superuser, make_tasks):
    make_tasks(SECOND)
    superuser.execute("INSERT INTO users (id, revision) VALUES (%s, 7)", (FIRST,))
    superuser.execute(REQUEST_RENEWAL)

    owners = renew_revisions(url, TABLES)

    assert owners == 2
    assert read_counter(superuser, FIRST) == 7
    assert read_rows(superuser, SECOND)[1] == {read_counter(superuser, SECOND)}


def test_interrupted_renewal_continues_with_the_next_owner(url, superuser, make_tasks):
    for user_id in (FIRST, SECOND, THIRD):
        make_tasks(user_id)
    before = {user_id: read_rows(superuser, user_id) for user_id in (FIRST, SECOND, THIRD)}
    superuser.execute(REQUEST_RENEWAL)

    with ThreadPoolExecutor(1) as threads, superuser.transaction():
        superuser.execute("SELECT 1 FROM tasks WHERE user_id = %s FOR UPDATE", (SECOND,))
        running = threads.submit(renew_revisions, url, TABLES)
        terminate_blocked(superuser)
        with pytest.raises(psycopg.OperationalError):
            running.result(timeout=30)
    interrupted = {user_id: read_rows(superuser, user_id) for user_id in before}
    position = read_position(superuser)
    owners = renew_revisions(url, TABLES)

    assert position == str(uuid.UUID(int=uuid.UUID(FIRST).int + 1))
    assert interrupted[FIRST][1] == {read_counter(superuser, FIRST)}
    assert interrupted[FIRST] != before[FIRST]
    assert (interrupted[SECOND], interrupted[THIRD]) == (before[SECOND], before[THIRD])
    assert owners == 2
    assert read_rows(superuser, FIRST) == interrupted[FIRST]
    for user_id in (SECOND, THIRD):
        rows, revisions = read_rows(superuser, user_id)
        assert rows == before[user_id][0]
        assert revisions == {read_counter(superuser, user_id)} != before[user_id][1]


def terminate_blocked(holder):
    """Terminate the connection that waits for a lock of this connection, as soon as it waits."""
    for _ in range(2000):
        # Within a transaction, PostgreSQL shows the same pg_stat_activity again otherwise.
        holder.execute("SELECT pg_stat_clear_snapshot()")
        terminated = holder.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        ).fetchall()
        if terminated:
            return
        time.sleep(0.005)
    pytest.fail("No connection waits for the lock.")


def test_concurrent_renewals_renew_each_owner_once(url, superuser, make_tasks):
    users = [str(uuid.uuid4()) for _ in range(8)]
    for user_id in users:
        make_tasks(user_id)
    superuser.execute(REQUEST_RENEWAL)

    with ThreadPoolExecutor(3) as threads:
        owners = list(threads.map(renew_revisions, [url] * 3, [TABLES] * 3))

    assert sum(owners) == len(users)
    for user_id in users:
        assert read_rows(superuser, user_id)[1] == {read_counter(superuser, user_id)}


def test_renewal_does_not_wait_for_a_row_that_was_inserted_after_its_locks(
    client, url, server, superuser, make_tasks
):
    """The writer that holds such a row may wait for the owner, which the renewal holds."""
    task, *_ = make_tasks(FIRST)
    superuser.execute(REQUEST_RENEWAL)
    database = at_database(server, conninfo_to_dict(url)["dbname"])

    with ThreadPoolExecutor(1) as threads, psycopg.connect(database) as writer:
        with psycopg.connect(database) as holder:
            holder.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
            running = threads.submit(renew_revisions, url, TABLES)
            wait_for_sessions(database, lambda: 1)
            new = client.post(f"/api/{FIRST}/tasks", json={"title": "New"}).json
            writer.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (new["id"],))
        try:
            owners = running.result(timeout=10)
        finally:
            writer.rollback()

    renewed = client.get(task.url).json
    assert owners == 1
    assert renewed["revision"] == read_counter(superuser, FIRST) > new["revision"]
    assert new in client.get(f"/api/{FIRST}/tasks").json


def test_renewal_during_writes_loses_no_change(client, url, superuser, make_tasks):
    """Writers change, delete, restore and create tasks while three renewals run."""
    app = client.application
    tasks = {user_id: make_tasks(user_id, count=6)[:-1] for user_id in (FIRST, SECOND)}
    renewed = threading.Event()
    statuses = set()

    def write(user_id, first):
        writer, number, created = app.test_client(), 0, []
        while not renewed.is_set() or number < 3:
            number += 1
            for task in tasks[user_id][first::2]:
                responses = [
                    writer.patch(task.url, json={"title": f"{first} {number}"}),
                    writer.delete(task.url),
                    writer.post(f"{task.url}/restore"),
                ]
                statuses.update(response.status_code for response in responses)
            response = writer.post(f"/api/{user_id}/tasks", json={"title": f"New {number}"})
            statuses.add(response.status_code)
            created.append(response.json["id"])
        return number, created

    with ThreadPoolExecutor(4) as threads:
        writers = {
            (user_id, first): threads.submit(write, user_id, first)
            for user_id in (FIRST, SECOND)
            for first in (0, 1)
        }
        try:
            for _ in range(3):
                superuser.execute(REQUEST_RENEWAL)
                assert renew_revisions(url, TABLES) == 2
        finally:
            renewed.set()
        results = {writer: future.result(timeout=60) for writer, future in writers.items()}

    assert statuses == {200, 201, 204}
    for user_id in (FIRST, SECOND):
        device = Device(client, f"/api/{user_id}/changes").sync()
        expected = {}
        for first in (0, 1):
            number, created = results[user_id, first]
            for task in tasks[user_id][first::2]:
                expected[task["id"]] = f"{first} {number}"
            expected |= {task_id: f"New {n}" for n, task_id in enumerate(created, 1)}
        assert {task_id: task["title"] for task_id, task in device.items()} == expected
