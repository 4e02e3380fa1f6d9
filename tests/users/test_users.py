"""DELETE of a user erases all rows of this user at once, and no row of another user."""

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
def read_rows(connection):
    """Return a function that reads all rows of a user."""

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


def test_delete_user_erases_the_user_and_every_task(
    client, user_url, user_id, make_task, read_rows
):
    tasks = [make_task(title=f"Task {number}") for number in range(3)]
    client.delete(tasks[0].url)
    before = read_rows(user_id)

    response = client.delete(user_url)

    assert response.status_code == 204
    assert response.data == b""
    assert len(before) == 4  # one user, two live tasks, one deleted task
    assert read_rows(user_id) == []
    assert client.get(f"{user_url}/tasks").json == []
    assert {client.get(task.url).status_code for task in tasks} == {404}


def test_delete_user_keeps_other_users(client, user_url, task, read_rows):
    other_user_id = str(uuid.uuid4())
    others_task = client.post(f"/api/{other_user_id}/tasks", json={"title": "Of another user"}).json
    before = read_rows(other_user_id)

    response = client.delete(user_url)

    assert response.status_code == 204
    assert read_rows(other_user_id) == before
    assert client.get(f"/api/{other_user_id}/tasks").json == [others_task]
    assert client.get(task.url).status_code == 404


def test_delete_user_succeeds_without_tasks_and_repeatedly(
    client, user_url, user_id, task, read_rows
):
    unknown_user_url = f"/api/{uuid.uuid4()}"

    statuses = [client.delete(url).status_code for url in (unknown_user_url, user_url, user_url)]

    assert statuses == [204, 204, 204]
    assert read_rows(user_id) == []
    assert client.get(task.url).status_code == 404


def test_user_id_may_be_in_upper_case(client, user_id, task, read_rows):
    response = client.delete(f"/api/{user_id.upper()}")

    assert response.status_code == 204
    assert read_rows(user_id) == []
    assert client.get(task.url).status_code == 404


def test_revisions_of_an_erased_user_do_not_repeat(client, user_url, make_task):
    erased = [make_task() for _ in range(3)]
    client.delete(user_url)

    first, second = make_task(), make_task()

    revisions = [task["revision"] for task in (*erased, first, second)]
    assert revisions == sorted(set(revisions))
    assert client.get(f"{user_url}/tasks").json == [second, first]


def test_old_sync_tokens_get_410_after_the_user_was_erased(
    client, user_url, user_id, make_task, connection
):
    """A sync token of the erased life is older than `purged_revision`, so it gets a 410."""
    make_task()
    token = client.get(f"{user_url}/changes?since=0").json["next"]
    client.delete(user_url)

    first = make_task()
    (row,) = connection.execute(
        "SELECT revision, purged_revision FROM users WHERE id = %s", (user_id,)
    )
    outdated = client.get(f"{user_url}/changes", query_string={"since": token})
    full = client.get(f"{user_url}/changes?since=0")
    later = client.get(f"{user_url}/changes", query_string={"since": full.json["next"]})

    assert row == (first["revision"], first["revision"] - 1)
    assert outdated.status_code == 410
    assert [change["value"] for change in full.json["changes"]] == [first]
    assert (later.status_code, later.json["changes"]) == (200, [])


def test_delete_user_erases_5000_tasks_in_one_request(
    client, connection, user_url, user_id, make_task, read_rows
):
    make_task()
    connection.execute(
        """
        INSERT INTO tasks (user_id, id, title)
        SELECT %s, gen_random_uuid(), 'Task ' || n FROM generate_series(1, 5000) AS n
        """,
        (user_id,),
    )

    response = client.delete(user_url)

    assert response.status_code == 204
    assert read_rows(user_id) == []


@pytest.mark.parametrize("path", ["/api/x", "/api/{0}?x=1", "/api/{0}0"])
def test_delete_user_with_an_invalid_path_is_refused(client, user_id, task, path):
    response = client.delete(path.format(user_id))

    assert response.status_code == 422
    assert client.get(task.url).json == task


def test_user_cannot_be_created_or_replaced(client, user_url, task):
    for method in ("POST", "PUT"):
        response = client.open(user_url, method=method)
        assert response.status_code == 405
        allowed = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH"}
        assert set(response.headers["Allow"].split(", ")) == allowed

    assert client.get(task.url).json == task


SECONDS = 1.5


def run_concurrently(app, *actions) -> None:
    """Repeat each action in its own thread, with its own client, for SECONDS."""
    barrier = threading.Barrier(len(actions))
    end = time.monotonic() + SECONDS

    def run(action) -> int:
        client = app.test_client()
        barrier.wait(timeout=10)
        rounds = 0
        while time.monotonic() < end:
            action(client)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(len(actions)) as pool:
        futures = [pool.submit(run, action) for action in actions]
        assert all(future.result(timeout=60) > 0 for future in futures)


def test_user_is_erased_while_clients_create_tasks(app, user_url, user_id, read_rows):
    statuses = {"erased": set(), "created": set()}

    def erase_user(client):
        statuses["erased"].add(client.delete(user_url).status_code)

    def create(client):
        response = client.post(f"{user_url}/tasks", json={"title": "x"})
        statuses["created"].add(response.status_code)

    run_concurrently(app, erase_user, create, create, create)

    assert statuses == {"erased": {204}, "created": {201}}
    app.test_client().delete(user_url)
    assert read_rows(user_id) == []


def test_user_is_erased_while_clients_change_tasks(app, user_url, user_id, read_rows):
    statuses = {"erased": set(), "changed": set()}

    def erase_user(client):
        statuses["erased"].add(client.delete(user_url).status_code)

    def change(client):
        url = client.post(f"{user_url}/tasks", json={"title": "x"}).headers["Location"]
        for number in range(5):
            response = client.patch(url, json={"title": f"Change {number}"})
            statuses["changed"].add(response.status_code)
        statuses["changed"].add(client.delete(url).status_code)

    run_concurrently(app, erase_user, change, change, change)

    # 503: PostgreSQL cancelled the transaction because of a deadlock, and then the retry, too.
    assert {204} <= statuses["erased"] <= {204, 503}
    assert statuses["changed"] <= {200, 204, 404, 503}
    app.test_client().delete(user_url)
    assert read_rows(user_id) == []
