"""Retries after a lost connection: each change is made once, and each request gets a response."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import func, literal_column, select

from tests.support.api import etag
from tests.support.locks import wait_for_sessions
from tests.support.unreliable_pool import unreliable_pool
from todo_api.db.pool import Pool
from todo_api.db.statement import compiled

# The counter of a user whose revisions are ahead of the clock: each change adds 1 to it.
AHEAD = 2**52


@pytest.fixture
def app(shared_app, make_settings):
    application = shared_app()
    with unreliable_pool(application, make_settings()):
        yield application


@pytest.fixture
def lose(app):
    """Lose the next transaction before it is sent, or its response after `meanwhile` has run."""

    def once(moment: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        app.services.pool.next_loss = (moment, meanwhile)

    return once


WRITES = {
    "PUT": ("PUT", "", {"title": "Buy oats"}),
    "PATCH": ("PATCH", "", {"title": "Buy oats"}),
    "complete": ("PATCH", "/complete", {"completed": True}),
    "DELETE": ("DELETE", "", None),
}
EVERY_WRITE = pytest.mark.parametrize(("method", "path", "body"), WRITES.values(), ids=WRITES)
BOTH_MOMENTS = pytest.mark.parametrize("moment", ["request", "response"])


@BOTH_MOMENTS
def test_read_is_repeated(client, task, lose, moment):
    lose(moment)

    assert client.get(task.url).json == task


@BOTH_MOMENTS
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}])
@pytest.mark.parametrize("members", [{}, {"id": "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"}])
def test_create_is_done_once(
    client, tasks_url, user_id, connection, lose, moment, headers, members
):
    connection.execute("INSERT INTO users (id, revision) VALUES (%s, %s)", (user_id, AHEAD))
    lose(moment)

    response = client.post(tasks_url, json={"title": "Buy oat milk"} | members, headers=headers)

    assert response.status_code == 201
    assert response.json["revision"] == AHEAD + 1
    assert "Idempotent-Replayed" not in response.headers
    assert client.get(tasks_url).json == [response.json]


@BOTH_MOMENTS
@pytest.mark.parametrize("members", [{}, {"id": "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"}])
def test_replay_is_marked_after_a_lost_connection(client, tasks_url, lose, moment, members):
    request = {"json": {"title": "Buy oat milk"} | members, "headers": {"Idempotency-Key": "a-key"}}
    first = client.post(tasks_url, **request)
    lose(moment)

    replayed = client.post(tasks_url, **request)

    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert replayed.json == first.json


CHANGES_BY_OTHERS = pytest.mark.parametrize(
    "change", ["title = 'Written later'", "deleted_at = now()"], ids=["changed", "deleted"]
)


@CHANGES_BY_OTHERS
def test_creation_that_was_changed_before_its_retry_is_done_once(
    client, tasks_url, lose, connection, user_id, change
):
    """The server has just made the id, so no other request can have created a task with it."""
    lose(
        "response",
        lambda: connection.execute(f"UPDATE tasks SET {change} WHERE user_id = '{user_id}'"),
    )

    response = client.post(tasks_url, json={"title": "Buy oat milk"})

    (row,) = connection.execute(
        "SELECT id::text, title, revision FROM tasks WHERE user_id = %s", (user_id,)
    )
    assert response.status_code == 201
    assert (response.json["id"], response.json["title"], response.json["revision"]) == row
    assert response.headers["Location"] == f"{tasks_url}/{row[0]}"


@BOTH_MOMENTS
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}])
def test_id_of_another_task_is_a_conflict_in_the_retry_too(
    client, task, tasks_url, lose, moment, headers
):
    lose(moment)

    response = client.post(tasks_url, json={"id": task["id"], "title": "x"}, headers=headers)

    assert response.status_code == 409
    assert client.get(tasks_url).json == [task]


@BOTH_MOMENTS
@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_change_is_done_once(
    client, task, lose, connection, moment, method, path, body, conditional
):
    wait_after_change(connection, task)
    set_counter(connection, task)
    lose(moment)

    response = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    assert response.status_code == (204 if method == "DELETE" else 200)
    assert read_revision(connection, task) == AHEAD + 1


@BOTH_MOMENTS
def test_restore_is_done_once(client, task, lose, connection, moment):
    client.delete(task.url)
    wait_after_change(connection, task)
    set_counter(connection, task)
    lose(moment)

    response = client.post(f"{task.url}/restore")

    assert response.status_code == 200
    assert response.json["revision"] == read_revision(connection, task) == AHEAD + 1


@BOTH_MOMENTS
def test_trash_is_emptied_once(client, make_task, tasks_url, user_id, lose, moment):
    deleted, live = make_task(), make_task()
    client.delete(deleted.url)
    lose(moment)

    response = client.delete(f"/api/{user_id}/trash")

    assert response.status_code == 204
    assert client.get(f"/api/{user_id}/trash").json == []
    assert client.get(tasks_url).json == [live]


@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_retry_never_overwrites_a_later_change(
    client, task, lose, connection, database_url, method, path, body, conditional
):
    """If another change has replaced the title, the retry cannot detect the first run: 503.

    `completed` and the deletion are still visible: success.
    """
    wait_after_change(connection, task)
    set_counter(connection, task)
    lose("response", lambda: update_title(database_url, task, "Written later"))

    response = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    if "title" in (body or {}):
        assert response.status_code == 503
        assert "cannot tell whether the change was made" in response.json["detail"]
    else:
        assert response.status_code == (204 if method == "DELETE" else 200)
    assert read_revision(connection, task) == AHEAD + 2
    (title,) = connection.execute("SELECT title FROM tasks WHERE id = %s", (task["id"],)).fetchone()
    assert title == "Written later"


def test_outcome_is_unknown_when_the_retry_is_lost_too(app, client, task, lose, connection):
    unknown = "todo_database_unknown_outcomes_total"
    wait_after_change(connection, task)
    lose("response", lambda: lose("response"))

    response = client.patch(task.url, json={"title": "Buy oats"})

    assert response.status_code == 503
    assert "cannot tell whether the change was made" in response.json["detail"]
    assert app.services.metrics.registry.get_sample_value(unknown) == 1


@BOTH_MOMENTS
def test_failed_precondition_fails_again_in_the_retry(client, task, lose, moment):
    time.sleep(0.2)
    lose(moment)

    response = client.patch(task.url, json={"title": "Buy oats"}, headers={"If-Match": etag(999)})

    assert response.status_code == 412
    assert response.json["current"] == task


@BOTH_MOMENTS
def test_missing_task_is_404_in_the_retry_too(client, tasks_url, lose, moment):
    lose(moment)

    assert client.delete(f"{tasks_url}/{uuid.uuid4()}").status_code == 404


@BOTH_MOMENTS
def test_user_is_erased_once(client, task, user_id, tasks_url, lose, moment):
    lose(moment)

    assert client.delete(f"/api/{user_id}").status_code == 204
    assert client.get(tasks_url).json == []
    assert client.get(task.url).status_code == 404


WAIT = compiled(select(func.pg_advisory_xact_lock(literal_column("1"))))


class PausedPool(Pool):
    """A pool whose transactions wait after their first statement for a lock that the test holds."""

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            transact = connection.transact

            def wait_between(statements, values, deadline):
                settings, first, *others = statements
                rows = transact([settings, first, WAIT, *others], values, deadline)
                return [*rows[:2], *rows[3:]]

            connection.transact = wait_between
            yield connection
            connection.transact = transact


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}])
def test_creation_is_repeated_if_the_trash_is_emptied_before_its_outcome_is_read(
    app, make_settings, task, tasks_url, user_id, connection, headers
):
    """The insertion finds the id in the trash, and the statement after it finds nothing."""
    client = app.test_client()
    client.delete(task.url)
    pool = PausedPool(make_settings(), app.services.metrics)
    paused = replace(app.services, pool=pool)
    running, app.services = app.services, paused
    body = {"id": task["id"], "title": "Buy oats"}

    connection.execute("SELECT pg_advisory_lock(1)")
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(client.post, tasks_url, json=body, headers=headers)
        wait_until_blocked_by(connection)
        app.services = running
        emptied = app.test_client().delete(f"/api/{user_id}/trash")
        connection.execute("SELECT pg_advisory_unlock(1)")
        response = pending.result(timeout=30)
    pool.close()

    assert emptied.status_code == 204
    assert (response.status_code, response.json["title"]) == (201, "Buy oats")
    assert client.get(tasks_url).json == [response.json]


class RacingPool(Pool):
    """A pool that calls a function of the test before each transaction."""

    before_transaction: Callable[[], object]

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            self.before_transaction()
            yield connection


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}])
def test_creation_that_loses_every_race_is_a_503(
    app, make_settings, tasks_url, user_id, connection, database_url, headers
):
    """Before each run, the task is removed, and another transaction inserts it again."""
    task_id = str(uuid.uuid4())
    pool = RacingPool(make_settings(), app.services.metrics)
    app.services.pool.close()
    app.services = replace(app.services, pool=pool)
    client = app.test_client()
    body = {"id": task_id, "title": "Buy oats"}
    runs = []

    with ThreadPoolExecutor(2) as threads:

        def insert(other):
            wait_for_sessions(database_url, lambda: 1)
            other.commit()
            other.close()

        def start_race():
            connection.execute("DELETE FROM tasks WHERE id = %s", (task_id,))
            other = psycopg.connect(database_url)
            other.execute(
                "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, 'Buy oats')",
                (user_id, task_id),
            )
            runs.append(threads.submit(insert, other))

        pool.before_transaction = start_race
        response = client.post(tasks_url, json=body, headers=headers)
        for run in runs:
            run.result(timeout=30)
    pool.before_transaction = lambda: None
    repeated = client.post(tasks_url, json=body, headers=headers)

    assert len(runs) >= 2
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert "other requests create or remove the same items" in response.json["detail"]
    assert (repeated.status_code, client.get(tasks_url).json) == (201, [repeated.json])


def wait_until_blocked_by(holder: psycopg.Connection) -> None:
    """Return when another connection waits for a lock that this connection has."""
    for _ in range(2000):
        waiting = holder.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        ).fetchone()
        if waiting:
            return
        time.sleep(0.005)
    pytest.fail("No connection waits for the lock.")


def test_requests_succeed_after_connections_are_terminated(
    app, client, tasks_url, database_url, make_task
):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: app.test_client().get(tasks_url), range(64)))

    for number in range(5):
        terminate(database_url)
        assert make_task(title=str(number))["title"] == str(number)
        terminate(database_url)
        assert len(client.get(tasks_url).json) == number + 1


def terminate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("""
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'todo-api'
        """)


def wait_after_change(connection, task):
    """Wait, so that the changes of the test's setup are clearly older than the request."""
    time.sleep(0.15)
    assert read_revision(connection, task)


def update_title(url: str, task, title: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE tasks SET title = %s WHERE id = %s", (title, task["id"]))


def set_counter(connection, task) -> None:
    connection.execute("UPDATE users SET revision = %s WHERE id = %s", (AHEAD, task["user_id"]))


def read_revision(connection, task) -> int:
    rows = connection.execute("SELECT revision FROM tasks WHERE id = %s", (task["id"],))
    return rows.fetchone()[0]
