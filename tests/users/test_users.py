"""Leaving: a user is erased whole, at once, and nobody else is."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def user_url(user_id: str) -> str:
    return f"/api/{user_id}"


@pytest.fixture
def kept(connection):
    """Every row that the database has of a user."""

    def read(user_id: str) -> list:
        return connection.execute(
            """
            SELECT to_jsonb(users) FROM users WHERE id = %(id)s
            UNION ALL
            SELECT to_jsonb(tasks) FROM tasks WHERE user_id = %(id)s
            """,
            {"id": user_id},
        ).fetchall()

    return read


def test_a_user_leaves_with_every_task(client, user_url, user_id, make_task, kept):
    tasks = [make_task(title=f"Task {number}") for number in range(3)]
    client.delete(tasks[0].url)
    before = kept(user_id)

    answer = client.delete(user_url)

    assert answer.status_code == 204
    assert answer.data == b""
    assert len(before) == 4  # the user, two tasks and a deleted one
    assert kept(user_id) == []
    assert client.get(f"{user_url}/tasks").json == []
    assert {client.get(task.url).status_code for task in tasks} == {404}


def test_nobody_else_leaves(client, user_url, task, kept):
    other = str(uuid.uuid4())
    theirs = client.post(f"/api/{other}/tasks", json={"title": "Stays"}).json
    before = kept(other)

    answer = client.delete(user_url)

    assert answer.status_code == 204
    assert kept(other) == before
    assert client.get(f"/api/{other}/tasks").json == [theirs]
    assert client.get(task.url).status_code == 404


def test_whoever_has_nothing_may_leave_too(client, user_url, user_id, task, kept):
    stranger = f"/api/{uuid.uuid4()}"

    statuses = [client.delete(url).status_code for url in (stranger, user_url, user_url)]

    assert statuses == [204, 204, 204]
    assert kept(user_id) == []
    assert client.get(task.url).status_code == 404


def test_an_id_is_read_in_any_case(client, user_id, task, kept):
    answer = client.delete(f"/api/{user_id.upper()}")

    assert answer.status_code == 204
    assert kept(user_id) == []
    assert client.get(task.url).status_code == 404


def test_whoever_comes_back_begins_anew(client, user_url, make_task):
    former = [make_task() for _ in range(3)]
    client.delete(user_url)

    first, second = make_task(), make_task()

    assert [task["revision"] for task in former] == [1, 2, 3]
    assert [task["revision"] for task in (first, second)] == [1, 2]
    assert client.get(f"{user_url}/tasks").json == [second, first]


def test_many_tasks_leave_within_a_request(client, connection, user_url, user_id, make_task, kept):
    make_task()
    connection.execute(
        """
        INSERT INTO tasks (user_id, id, title)
        SELECT %s, gen_random_uuid(), 'Task ' || n FROM generate_series(1, 5000) AS n
        """,
        (user_id,),
    )

    answer = client.delete(user_url)

    assert answer.status_code == 204
    assert kept(user_id) == []


@pytest.mark.parametrize("path", ["/api/x", "/api/{0}?x=1", "/api/{0}0"])
def test_whom_a_path_does_not_name_stays(client, user_id, task, path):
    answer = client.delete(path.format(user_id))

    assert answer.status_code == 422
    assert client.get(task.url).json == task


def test_leaving_is_a_users_only_method(client, user_url, task):
    for method in ("GET", "POST", "PUT", "PATCH"):
        answer = client.open(user_url, method=method)
        assert answer.status_code == 405
        assert "DELETE" in answer.headers["Allow"]

    assert client.get(task.url).json == task


SECONDS = 1.5


def race(app, *parts) -> None:
    """Run each part again and again with a client of its own, side by side, for a while."""
    together = threading.Barrier(len(parts))
    until = time.monotonic() + SECONDS

    def run(part) -> int:
        client = app.test_client()
        together.wait(timeout=10)
        rounds = 0
        while time.monotonic() < until:
            part(client)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(len(parts)) as pool:
        running = [pool.submit(run, part) for part in parts]
        assert all(ended.result(timeout=60) > 0 for ended in running)


def test_a_user_leaves_while_others_create(app, user_url, user_id, kept):
    statuses = {"left": set(), "created": set()}

    def leave(client):
        statuses["left"].add(client.delete(user_url).status_code)

    def create(client):
        answer = client.post(f"{user_url}/tasks", json={"title": "x"})
        statuses["created"].add(answer.status_code)

    race(app, leave, create, create, create)

    assert statuses == {"left": {204}, "created": {201}}
    app.test_client().delete(user_url)
    assert kept(user_id) == []


def test_a_user_leaves_while_others_change(app, user_url, user_id, kept):
    statuses = {"left": set(), "changed": set()}

    def leave(client):
        statuses["left"].add(client.delete(user_url).status_code)

    def change(client):
        url = client.post(f"{user_url}/tasks", json={"title": "x"}).headers["Location"]
        for number in range(5):
            answer = client.patch(url, json={"title": f"Change {number}"})
            statuses["changed"].add(answer.status_code)
        statuses["changed"].add(client.delete(url).status_code)

    race(app, leave, change, change, change)

    # 503: who is chosen to end a deadlock, and when it is repeated once more.
    assert {204} <= statuses["left"] <= {204, 503}
    assert statuses["changed"] <= {200, 204, 404, 503}
    app.test_client().delete(user_url)
    assert kept(user_id) == []
