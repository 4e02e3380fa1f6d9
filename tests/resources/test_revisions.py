"""The database numbers an owner's changes: each its own number, visible in order."""

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

# What one glance, one snapshot, shows of an owner: the revisions of the tasks, and the counter.
GLANCE = """
    SELECT array(SELECT revision FROM tasks WHERE user_id = %(id)s ORDER BY revision),
           coalesce((SELECT revision FROM users WHERE id = %(id)s), 0)
"""


class Write(NamedTuple):
    """A write's answer, and the time between which it was committed."""

    revision: int
    updated_at: str
    began: float
    ended: float


def write(client, method, url, title):
    began = time.monotonic()
    answer = client.open(url, method=method, json={"title": title})
    assert answer.status_code in {200, 201}, answer.text
    return Write(answer.json["revision"], answer.json["updated_at"], began, time.monotonic())


@pytest.fixture
def glances(database_url, user_id):
    """What an observer sees of the user during the test, glance by glance."""
    seen = []
    over = threading.Event()

    def observe():
        with psycopg.connect(database_url, autocommit=True) as connection:
            while not over.is_set():
                seen.append(connection.execute(GLANCE, {"id": user_id}).fetchone())

    with ThreadPoolExecutor(1) as pool:
        observer = pool.submit(observe)

        def stop():
            over.set()
            observer.result(timeout=10)
            return seen

        yield stop
        over.set()


@pytest.fixture
def counter(connection, user_id):
    """Read the number of the user's latest change."""
    return lambda: connection.execute(GLANCE, {"id": user_id}).fetchone()[1]


def test_two_writers_on_one_task_get_numbers_in_commit_order(app, task, glances, count):
    rounds = count(5_000)

    def work(writer):
        client = app.test_client()
        return [write(client, "PATCH", task.url, f"{writer} {number}") for number in range(rounds)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, ["first", "second"])
    seen = glances()

    writes = sorted(first + second)
    moments = [each.updated_at for each in writes]
    assert [each.revision for each in writes] == list(range(2, 2 * rounds + 2))
    assert moments == sorted(set(moments))
    # Whoever began after another had its answer has the higher number.
    last_began = accumulate((each.began for each in writes), max)
    assert all(each.ended > began for each, began in zip(writes, last_began, strict=True))
    # Both were at it all the time: it was a race.
    of_first = [each in first for each in writes]
    assert sum(one != next_one for one, next_one in pairwise(of_first)) > rounds / 10
    assert len(seen) > rounds / 10
    assert all(revisions == [latest] for revisions, latest in seen)
    assert [latest for _, latest in seen] == sorted(latest for _, latest in seen)


def test_numbers_become_visible_in_order(app, tasks_url, glances):
    def work(writer):
        client = app.test_client()
        return [write(client, "POST", tasks_url, f"{writer} {number}") for number in range(100)]

    with ThreadPoolExecutor(4) as pool:
        made = [each for writes in pool.map(work, range(4)) for each in writes]
    seen = glances()

    assert sorted(each.revision for each in made) == list(range(1, 401))
    assert len({len(revisions) for revisions, _ in seen}) > 20
    for revisions, latest in seen:
        assert revisions == list(range(1, latest + 1))


def test_a_number_waits_for_the_one_before_to_be_committed(
    client, tasks_url, user_id, database_url, counter
):
    with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        insert_by_hand(other, user_id)
        waiting = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_for_lock(database_url, other)
        held = waiting.done()
        visible = counter()
        other.commit()
        answer = waiting.result(timeout=10)

    assert not held
    assert visible == 0
    assert answer.json["revision"] == 2
    newer, older = client.get(tasks_url).json
    assert (newer["revision"], older["revision"]) == (2, 1)
    assert newer["updated_at"] > older["updated_at"]


def test_the_number_of_a_change_rolled_back_is_free(
    client, tasks_url, user_id, database_url, counter
):
    client.post(tasks_url, json={"title": "Buy oats"})
    with psycopg.connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        insert_by_hand(other, user_id)
        waiting = pool.submit(client.post, tasks_url, json={"title": "Buy oat milk"})
        wait_for_lock(database_url, other)
        other.rollback()
        answer = waiting.result(timeout=10)

    assert answer.json["revision"] == counter() == 2


def test_each_user_has_numbers_of_their_own(client, make_task):
    others_url = f"/api/{uuid.uuid4()}/tasks"
    for _ in range(3):
        make_task()

    answer = client.post(others_url, json={"title": "Buy oat milk"})

    assert answer.json["revision"] == 1


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
def test_a_request_that_changes_nothing_takes_no_number(
    client, task, counter, method, path, body, status
):
    answer = client.open(task.url + path, method=method, json=body)

    assert answer.status_code == status
    assert counter() == 1
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
@pytest.mark.parametrize("there", ["deleted", "never"])
def test_a_request_that_finds_nothing_takes_no_number(
    client, task, counter, tasks_url, method, path, body, there
):
    client.delete(task.url)
    url = task.url if there == "deleted" else f"{tasks_url}/{uuid.uuid4()}"

    answer = client.open(url + path, method=method, json=body)

    assert answer.status_code == 404
    assert counter() == 2


def test_a_deletion_takes_a_number(client, task, counter):
    client.delete(task.url)

    assert counter() == 2


def test_a_change_by_hand_takes_a_number_and_moves_updated_at(client, task, connection, counter):
    connection.execute("UPDATE tasks SET title = 'Buy oats' WHERE id = %s", (task["id"],))

    changed = client.get(task.url)
    assert changed.json["revision"] == counter() == 2
    assert changed.json["updated_at"] > task["updated_at"]
    assert changed.json["created_at"] == task["created_at"]
    assert changed.headers["ETag"] == etag(2)


def test_a_change_by_hand_of_many_tasks_takes_a_number_for_each(
    client, make_task, tasks_url, user_id, connection, counter
):
    for _ in range(3):
        make_task()

    connection.execute("UPDATE tasks SET completed = true WHERE user_id = %s", (user_id,))

    assert {task["revision"] for task in client.get(tasks_url).json} == {4, 5, 6}
    assert counter() == 6


def test_a_change_by_hand_cannot_choose_its_number_or_its_moment(client, task, connection, counter):
    connection.execute(
        "UPDATE tasks SET title = 'Buy oats', revision = 99, updated_at = '2001-01-01'"
        " WHERE id = %s",
        (task["id"],),
    )

    changed = client.get(task.url).json
    assert changed["revision"] == counter() == 2
    assert changed["updated_at"] > task["updated_at"]


def test_a_change_by_hand_that_changes_nothing_takes_no_number(client, task, connection, counter):
    connection.execute("UPDATE tasks SET title = title WHERE id = %s", (task["id"],))

    assert client.get(task.url).json == task
    assert counter() == 1


def test_a_task_put_in_by_hand_takes_a_number(client, tasks_url, user_id, connection, counter):
    before = datetime.now(UTC)

    insert_by_hand(connection, user_id)
    insert_by_hand(connection, user_id, revision=99, moment="2001-01-01")

    newer, older = client.get(tasks_url).json
    assert (newer["revision"], older["revision"]) == (2, 1)
    assert counter() == 2
    for task in (newer, older):
        assert task["created_at"] == task["updated_at"]
        assert datetime.fromisoformat(task["updated_at"]) > before


def insert_by_hand(connection, user_id, revision=0, moment="now"):
    connection.execute(
        "INSERT INTO tasks (user_id, id, title, revision, created_at, updated_at)"
        " VALUES (%s, gen_random_uuid(), 'By hand', %s, %s, %s)",
        (user_id, revision, moment, moment),
    )


def wait_for_lock(database_url, holder):
    """Return when somebody waits for what the connection has locked."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for _ in range(1000):
            waiting = connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))",
                (holder.info.backend_pid,),
            ).fetchone()
            if waiting:
                return
            time.sleep(0.005)
    pytest.fail("Nobody waits.")
