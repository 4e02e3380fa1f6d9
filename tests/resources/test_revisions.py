"""The database numbers each change of an owner by a clock; revisions become visible in order."""

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
from tests.support.trees import assert_trees_are_right

# The counter of a user whose revisions are ahead of the clock. Each change adds 1 to it, so that a
# test can compare whole numbers.
AHEAD = 2**52

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

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


@pytest.fixture
def set_counter(connection, user_id):
    """Return a function that sets the user's latest revision."""

    def set_to(revision):
        connection.execute(
            "INSERT INTO users (id, revision) VALUES (%(id)s, %(revision)s)"
            " ON CONFLICT (id) DO UPDATE SET revision = %(revision)s",
            {"id": user_id, "revision": revision},
        )

    return set_to


@pytest.fixture
def read_row(connection):
    """Return a function that reads a task's row, with the id of the transaction that wrote it."""

    def read(task):
        query = "SELECT xmin::text, to_jsonb(tasks) FROM tasks WHERE id = %s"
        return connection.execute(query, (task["id"],)).fetchone()

    return read


@pytest.fixture
def read_clock(connection):
    """Return a function that reads PostgreSQL's clock, in microseconds since 1970."""
    query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    return lambda: connection.execute(query).fetchone()[0]


def test_revision_is_the_microsecond_of_the_change(client, make_task, read_clock):
    before = read_clock()
    task = make_task()
    between = read_clock()
    changed = client.patch(task.url, json={"title": "Buy oats"})
    after = read_clock()

    assert before <= task["revision"] <= between <= changed.json["revision"] <= after
    assert task["revision"] <= microseconds(task["updated_at"])


def microseconds(moment):
    return round(datetime.fromisoformat(moment).timestamp() * 1_000_000)


def test_revision_ahead_of_the_clock_grows_by_1(client, make_task, read_counter, set_counter):
    set_counter(AHEAD)

    task = make_task()
    changed = client.patch(task.url, json={"title": "Buy oats"})

    assert (task["revision"], changed.json["revision"]) == (AHEAD + 1, AHEAD + 2)
    assert read_counter() == AHEAD + 2


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
    assert len({task["revision"], *(write.revision for write in writes)}) == 2 * rounds + 1
    assert writes[0].revision > task["revision"]
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

    written = sorted(write.revision for write in writes)
    assert len(set(written)) == 400
    assert len({len(revisions) for revisions, _ in snapshots}) > 20
    for revisions, latest in snapshots:
        assert revisions == written[: len(revisions)]
        assert latest == max(revisions, default=0)


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
    newer, older = client.get(tasks_url).json
    assert newer == response.json
    assert newer["revision"] == read_counter() > older["revision"]
    assert newer["updated_at"] > older["updated_at"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_first_revision_is_taken_after_the_wait_for_another_first_change(
    client, tasks_url, user_id, database_url, connection, read_clock, end
):
    """The user may have been erased meanwhile, so a number of before could be lower than theirs."""
    with psycopg.connect(database_url) as other_connection, ThreadPoolExecutor(1) as pool:
        other_connection.execute("INSERT INTO users (id) VALUES (%s)", (user_id,))
        pending = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_until_blocked_by(database_url, other_connection)
        other_connection.execute("DELETE FROM users WHERE id = %s", (user_id,))
        clock = read_clock()
        getattr(other_connection, end)()
        revision = pending.result(timeout=10).json["revision"]

    query = "SELECT revision, purged_revision FROM users WHERE id = %s"
    assert revision > clock
    assert connection.execute(query, (user_id,)).fetchall() == [(revision, revision - 1)]


def test_rolled_back_change_does_not_move_the_counter(
    client, tasks_url, user_id, database_url, read_counter, set_counter
):
    set_counter(AHEAD)
    with psycopg.connect(database_url) as other_connection, ThreadPoolExecutor(1) as pool:
        insert_with_sql(other_connection, user_id)
        pending = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_until_blocked_by(database_url, other_connection)
        other_connection.rollback()
        response = pending.result(timeout=10)

    assert response.json["revision"] == read_counter() == AHEAD + 1


def test_each_user_has_a_separate_counter(client, make_task, read_counter, set_counter):
    others_url = f"/api/{uuid.uuid4()}/tasks"
    set_counter(AHEAD)

    response = client.post(others_url, json={"title": "Buy oat milk"})

    assert response.json["revision"] < AHEAD
    assert read_counter() == AHEAD
    assert make_task()["revision"] == AHEAD + 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "", None, 200),
        ("PATCH", "", {}, 200),
        ("PATCH", "", {"title": "Buy oat milk", "completed": False}, 200),
        ("PATCH", "", {"title": "  Buy oat milk  "}, 200),
        ("PATCH", "", {"title": ""}, 422),
        ("PUT", "", {"title": "Buy oat milk"}, 200),
        ("PUT", "", {"title": "Buy oat milk", "description": "Two litres"}, 200),
        ("PUT", "", {"description": "Two litres"}, 422),
        ("PATCH", "/complete", {"completed": False}, 200),
        ("POST", "/restore", None, 200),
    ],
)
def test_request_without_a_change_writes_nothing(
    client, task, read_counter, read_row, method, path, body, status
):
    before = read_row(task)

    response = client.open(task.url + path, method=method, json=body)

    assert response.status_code == status
    assert status == 422 or response.json == task
    assert read_counter() == task["revision"]
    assert client.get(task.url).json == task
    assert read_row(task) == before


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_task_sent_back_as_it_is_writes_nothing(client, task, read_counter, read_row, method):
    before = read_row(task)

    response = client.open(task.url, method=method, json=task)

    assert (response.status_code, response.json) == (200, task)
    assert read_counter() == task["revision"]
    assert read_row(task) == before


def test_repeated_creation_writes_nothing(client, tasks_url, read_counter, read_row):
    body = {"id": str(uuid.uuid4()), "title": "Buy oat milk"}
    first = client.post(tasks_url, json=body)
    before = read_row(first.json)

    repeated = client.post(tasks_url, json=body)

    assert (repeated.status_code, repeated.json) == (201, first.json)
    assert read_counter() == first.json["revision"]
    assert read_row(first.json) == before


def test_repeated_deletion_writes_nothing(client, task, read_counter, read_row):
    client.delete(task.url)
    revision, before = read_counter(), read_row(task)

    repeated = client.delete(task.url)

    assert repeated.status_code == 204
    assert read_counter() == revision
    assert read_row(task) == before


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"title": "Buy oats"}),
        ("PUT", "", {"title": "Buy oats"}),
        ("PATCH", "/complete", None),
    ],
)
@pytest.mark.parametrize("reason", ["deleted", "unknown"])
def test_request_for_a_missing_task_takes_no_revision(
    client, task, read_counter, tasks_url, method, path, body, reason
):
    client.delete(task.url)
    revision = read_counter()
    url = task.url if reason == "deleted" else f"{tasks_url}/{uuid.uuid4()}"

    response = client.open(url + path, method=method, json=body)

    assert response.status_code == 404
    assert read_counter() == revision


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/restore")])
def test_request_for_an_unknown_task_takes_no_revision(
    client, task, read_counter, tasks_url, method, path
):
    response = client.open(f"{tasks_url}/{uuid.uuid4()}{path}", method=method)

    assert response.status_code == 404
    assert read_counter() == task["revision"]


def test_deletion_and_restoration_take_a_revision_each(
    client, make_task, read_counter, set_counter
):
    set_counter(AHEAD)
    task = make_task()

    client.delete(task.url)
    after_deletion = read_counter()
    restored = client.post(f"{task.url}/restore")

    assert after_deletion == AHEAD + 2
    assert restored.json["revision"] == read_counter() == AHEAD + 3


def test_emptying_the_trash_takes_no_revision(client, task, user_id, read_counter):
    client.delete(task.url)
    revision = read_counter()

    response = client.delete(f"/api/{user_id}/trash")

    assert response.status_code == 204
    assert read_counter() == revision


def test_sql_update_takes_a_revision_and_sets_updated_at(client, task, connection, read_counter):
    connection.execute("UPDATE tasks SET title = 'Buy oats' WHERE id = %s", (task["id"],))

    changed = client.get(task.url)
    assert changed.json["revision"] == read_counter() > task["revision"]
    assert changed.json["updated_at"] > task["updated_at"]
    assert changed.json["created_at"] == task["created_at"]
    assert changed.headers["ETag"] == etag(read_counter())


def test_all_changes_of_a_transaction_share_a_revision(
    client, make_task, tasks_url, user_id, connection, read_counter, set_counter
):
    set_counter(AHEAD)
    tasks = [make_task() for _ in range(3)]

    with connection.transaction():
        connection.execute("UPDATE tasks SET completed = true WHERE user_id = %s", (user_id,))
        insert_with_sql(connection, user_id)
        connection.execute("UPDATE tasks SET title = 'Twice' WHERE id = %s", (tasks[0]["id"],))

    assert [task["revision"] for task in client.get(tasks_url).json] == [AHEAD + 4] * 4
    assert read_counter() == AHEAD + 4
    assert client.get(f"{tasks_url}/{tasks[0]['id']}").json["title"] == "Twice"
    assert_trees_are_right(connection, user_id)


def test_owners_in_one_transaction_take_revisions_of_their_own(
    client, task, connection, read_counter, set_counter
):
    others_url = f"/api/{uuid.uuid4()}/tasks"
    others_task = client.post(others_url, json={"title": "Of another user"}).json
    set_counter(AHEAD)

    connection.execute(
        "UPDATE tasks SET completed = true WHERE id = ANY(%s::uuid[])",
        ([task["id"], others_task["id"]],),
    )

    (others_changed,) = client.get(others_url).json
    assert client.get(task.url).json["revision"] == read_counter() == AHEAD + 1
    assert others_task["revision"] < others_changed["revision"] < AHEAD


def test_rows_of_several_owners_in_one_statement_are_counted(connection):
    owners = [str(uuid.uuid4()) for _ in range(3)]

    connection.execute(
        "INSERT INTO tasks (user_id, id, title)"
        " SELECT owner, gen_random_uuid(), 'Task ' || number FROM"
        " generate_series(1, 4) AS number, unnest(%s::uuid[]) AS owner",
        (owners,),
    )
    connection.execute("UPDATE tasks SET title = 'Longer' WHERE user_id = ANY(%s)", (owners,))

    for owner in owners:
        assert_trees_are_right(connection, owner)


def test_next_transaction_of_a_connection_takes_another_revision(
    make_task, connection, read_counter, set_counter
):
    set_counter(AHEAD)
    task = make_task()

    for title in ("First", "Second"):
        with connection.transaction():
            connection.execute("UPDATE tasks SET title = %s WHERE id = %s", (title, task["id"]))

    assert read_counter() == AHEAD + 3


def test_change_after_a_rolled_back_savepoint_takes_a_revision(
    client, make_task, connection, read_counter, set_counter
):
    set_counter(AHEAD)
    task = make_task()

    with connection.transaction():
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE tasks SET title = 'Lost' WHERE id = %s", (task["id"],))
        connection.execute("UPDATE tasks SET title = 'Kept' WHERE id = %s", (task["id"],))

    assert client.get(task.url).json["revision"] == read_counter() == AHEAD + 2


def test_sql_update_cannot_set_revision_or_updated_at(client, task, connection, read_counter):
    connection.execute(
        "UPDATE tasks SET title = 'Buy oats', revision = 99, updated_at = '2001-01-01'"
        " WHERE id = %s",
        (task["id"],),
    )

    changed = client.get(task.url).json
    assert changed["revision"] == read_counter() > task["revision"]
    assert changed["updated_at"] > task["updated_at"]


def test_sql_update_without_a_change_takes_no_revision(client, task, connection, read_counter):
    connection.execute("UPDATE tasks SET title = title WHERE id = %s", (task["id"],))

    assert client.get(task.url).json == task
    assert read_counter() == task["revision"]


def test_sql_insert_takes_a_revision(client, tasks_url, user_id, connection, read_counter):
    before = datetime.now(UTC)

    insert_with_sql(connection, user_id)
    insert_with_sql(connection, user_id, revision=99, moment="2001-01-01")

    newer, older = client.get(tasks_url).json
    assert newer["revision"] == read_counter() > older["revision"] > 99
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
