"""The database gives each change of an owner the next revision; they become visible in order."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import NamedTuple

import psycopg
import pytest

from tests.support.api import etag

pytestmark = [pytest.mark.pooled, pytest.mark.divided]

# The revisions of an owner's tasks and the owner's counter, in one snapshot of the database.
SNAPSHOT_QUERY = """
    SELECT array(SELECT revision FROM tasks WHERE user_id = %(id)s ORDER BY revision),
           coalesce((SELECT revision FROM users WHERE id = %(id)s), 0)
"""


class Write(NamedTuple):
    """Members of a write's response, and the times before and after the write."""

    revision: int
    updated_at: str
    started_at: float
    ended_at: float


def send_write(client, method, url, title):
    started_at = time.monotonic()
    response = client.open(url, method=method, json={"title": title})
    assert response.status_code in {200, 201}, response.text
    return Write(
        response.json["revision"], response.json["updated_at"], started_at, time.monotonic()
    )


@pytest.fixture
def stop_observing(database_url, user_id):
    """Read snapshots of the user's revisions until this function is called; it returns them."""
    snapshots = []
    finished = threading.Event()

    def observe():
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not finished.is_set():
                snapshots.append(connection.execute(SNAPSHOT_QUERY, {"id": user_id}).fetchone())

    with ThreadPoolExecutor(1) as pool:
        observer = pool.submit(observe)

        def stop():
            finished.set()
            observer.result(timeout=10)
            return snapshots

        yield stop
        finished.set()


@pytest.fixture
def read_counter(connection, user_id):
    """Return a function that reads the user's latest revision."""
    return lambda: connection.execute(SNAPSHOT_QUERY, {"id": user_id}).fetchone()[1]


def test_revisions_of_two_writers_are_in_commit_order(app, task, stop_observing, count):
    rounds = count(5_000)

    def run_writer(writer):
        client = app.test_client()
        return [
            send_write(client, "PATCH", task.url, f"{writer} {number}") for number in range(rounds)
        ]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run_writer, ["first", "second"])
    snapshots = stop_observing()

    writes = sorted(first + second)
    moments = [write.updated_at for write in writes]
    assert [write.revision for write in writes] == list(range(2, 2 * rounds + 2))
    assert moments == sorted(set(moments))
    # A write that starts after another one has ended has the higher revision.
    last_start = accumulate((write.started_at for write in writes), max)
    assert all(
        write.ended_at > started_at for write, started_at in zip(writes, last_start, strict=True)
    )
    # Writes of both writers alternate, so the writers ran concurrently.
    is_first_writer = [write in first for write in writes]
    assert (
        sum(current != following for current, following in pairwise(is_first_writer)) > rounds / 10
    )
    assert len(snapshots) > rounds / 10
    assert all(revisions == [latest] for revisions, latest in snapshots)
    assert [latest for _, latest in snapshots] == sorted(latest for _, latest in snapshots)


def test_revisions_become_visible_in_order(app, tasks_url, stop_observing):
    def run_writer(writer):
        client = app.test_client()
        return [
            send_write(client, "POST", tasks_url, f"{writer} {number}") for number in range(100)
        ]

    with ThreadPoolExecutor(4) as pool:
        writes = [write for writes in pool.map(run_writer, range(4)) for write in writes]
    snapshots = stop_observing()

    assert sorted(write.revision for write in writes) == list(range(1, 401))
    assert len({len(revisions) for revisions, _ in snapshots}) > 20
    for revisions, latest in snapshots:
        assert revisions == list(range(1, latest + 1))


def test_change_waits_until_the_previous_revision_is_committed(
    client, tasks_url, user_id, database_url, read_counter
):
    with psycopg.connect(database_url) as other_connection, ThreadPoolExecutor(1) as pool:
        insert_with_sql(other_connection, user_id)
        pending = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_until_blocked_by(database_url, other_connection)
        was_done = pending.done()
        visible = read_counter()
        other_connection.commit()
        response = pending.result(timeout=10)

    assert not was_done
    assert visible == 0
    assert response.json["revision"] == 2
    newer, older = client.get(tasks_url).json
    assert (newer["revision"], older["revision"]) == (2, 1)
    assert newer["updated_at"] > older["updated_at"]


def test_revision_of_a_rolled_back_change_is_used_again(
    client, tasks_url, user_id, database_url, read_counter
):
    client.post(tasks_url, json={"title": "Buy oats"})
    with psycopg.connect(database_url) as other_connection, ThreadPoolExecutor(1) as pool:
        insert_with_sql(other_connection, user_id)
        pending = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_until_blocked_by(database_url, other_connection)
        other_connection.rollback()
        response = pending.result(timeout=10)

    assert response.json["revision"] == read_counter() == 2


def test_each_user_has_a_separate_counter(client, make_task):
    others_url = f"/api/{uuid.uuid4()}/tasks"
    for _ in range(3):
        make_task()

    response = client.post(others_url, json={"title": "Buy oat milk"})

    assert response.json["revision"] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "", None, 200),
        ("PATCH", "", {}, 200),
        ("PATCH", "", {"title": "Buy oat milk", "completed": False}, 200),
        ("PATCH", "", {"title": "  Buy oat milk  "}, 200),
        ("PATCH", "", {"title": ""}, 422),
        ("PUT", "", {"title": "Buy oat milk", "description": "Two litres"}, 200),
        ("PATCH", "/complete", {"completed": False}, 200),
    ],
)
def test_request_without_a_change_takes_no_revision(
    client, task, read_counter, method, path, body, status
):
    response = client.open(task.url + path, method=method, json=body)

    assert response.status_code == status
    assert read_counter() == 1
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"title": "Buy oats"}),
        ("PUT", "", {"title": "Buy oats"}),
        ("PATCH", "/complete", None),
        ("DELETE", "", None),
    ],
)
@pytest.mark.parametrize("reason", ["deleted", "unknown"])
def test_request_for_a_missing_task_takes_no_revision(
    client, task, read_counter, tasks_url, method, path, body, reason
):
    client.delete(task.url)
    url = task.url if reason == "deleted" else f"{tasks_url}/{uuid.uuid4()}"

    response = client.open(url + path, method=method, json=body)

    assert response.status_code == 404
    assert read_counter() == 2


def test_deletion_takes_a_revision(client, task, read_counter):
    client.delete(task.url)

    assert read_counter() == 2


def test_sql_update_takes_a_revision_and_sets_updated_at(client, task, connection, read_counter):
    connection.execute("UPDATE tasks SET title = 'Buy oats' WHERE id = %s", (task["id"],))

    changed = client.get(task.url)
    assert changed.json["revision"] == read_counter() == 2
    assert changed.json["updated_at"] > task["updated_at"]
    assert changed.json["created_at"] == task["created_at"]
    assert changed.headers["ETag"] == etag(2)


def test_sql_update_of_many_tasks_takes_a_revision_for_each(
    client, make_task, tasks_url, user_id, connection, read_counter
):
    for _ in range(3):
        make_task()

    connection.execute("UPDATE tasks SET completed = true WHERE user_id = %s", (user_id,))

    assert {task["revision"] for task in client.get(tasks_url).json} == {4, 5, 6}
    assert read_counter() == 6


def test_sql_update_cannot_set_revision_or_updated_at(client, task, connection, read_counter):
    connection.execute(
        "UPDATE tasks SET title = 'Buy oats', revision = 99, updated_at = '2001-01-01'"
        " WHERE id = %s",
        (task["id"],),
    )

    changed = client.get(task.url).json
    assert changed["revision"] == read_counter() == 2
    assert changed["updated_at"] > task["updated_at"]


def test_sql_update_without_a_change_takes_no_revision(client, task, connection, read_counter):
    connection.execute("UPDATE tasks SET title = title WHERE id = %s", (task["id"],))

    assert client.get(task.url).json == task
    assert read_counter() == 1


def test_sql_insert_takes_a_revision(client, tasks_url, user_id, connection, read_counter):
    before = datetime.now(UTC)

    insert_with_sql(connection, user_id)
    insert_with_sql(connection, user_id, revision=99, moment="2001-01-01")

    newer, older = client.get(tasks_url).json
    assert (newer["revision"], older["revision"]) == (2, 1)
    assert read_counter() == 2
    for task in (newer, older):
        assert task["created_at"] == task["updated_at"]
        assert datetime.fromisoformat(task["updated_at"]) > before


def insert_with_sql(connection, user_id, revision=0, moment="now"):
    connection.execute(
        "INSERT INTO tasks (user_id, id, title, revision, created_at, updated_at)"
        " VALUES (%s, gen_random_uuid(), 'With SQL', %s, %s, %s)",
        (user_id, revision, moment, moment),
    )


def wait_until_blocked_by(database_url, holder):
    """Return when another connection waits for a lock that this connection has."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in range(1000):
            pending = connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
                (holder.info.backend_pid,),
            ).fetchone()
            if pending:
                return
            time.sleep(0.005)
    pytest.fail("No connection waits for the lock.")
