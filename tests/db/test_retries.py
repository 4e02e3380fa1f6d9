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

from tests.support.api import etag
from todo_api.app import create_app
from todo_api.db.pool import Pool


class UnreliablePool(Pool):
    """A pool that loses the connection once, before the request or before the response."""

    next_loss: tuple[str, Callable[[], object]] | None = None

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            if self.next_loss:
                (moment, meanwhile), self.next_loss = self.next_loss, None
                connection.transact = lose_connection(connection, moment, meanwhile)
            yield connection


def lose_connection(connection, moment, meanwhile):
    transact = connection.transact

    def run(*arguments):
        if moment == "request":
            connection.close()
        transact(*arguments)
        connection.close()
        meanwhile()
        raise psycopg.OperationalError("the response is lost")

    return run


@pytest.fixture
def app(make_settings, log_stream):  # noqa: ARG001  logging comes first
    settings = make_settings()
    application = create_app(settings)
    application.services.pool.close()
    application.services = replace(
        application.services, pool=UnreliablePool(settings, application.services.metrics)
    )
    yield application
    application.services.pool.close()


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
def test_create_is_done_once(client, tasks_url, lose, moment, headers):
    lose(moment)

    response = client.post(tasks_url, json={"title": "Buy oat milk"}, headers=headers)

    assert response.status_code == 201
    assert response.json["revision"] == 1
    assert "Idempotent-Replayed" not in response.headers
    assert client.get(tasks_url).json == [response.json]


@BOTH_MOMENTS
def test_create_with_a_chosen_id_is_done_once(client, tasks_url, lose, moment):
    lose(moment)

    response = client.put(
        f"{tasks_url}/{uuid.uuid4()}",
        json={"title": "Buy oat milk"},
        headers={"If-None-Match": "*"},
    )

    assert response.status_code == 201
    assert client.get(tasks_url).json == [response.json]


@BOTH_MOMENTS
@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_change_is_done_once(
    client, task, lose, connection, moment, method, path, body, conditional
):
    wait_after_change(connection, task)
    lose(moment)

    response = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    assert response.status_code == (204 if method == "DELETE" else 200)
    assert read_revision(connection, task) == task["revision"] + 1


@BOTH_MOMENTS
def test_restore_is_done_once(client, task, lose, connection, moment):
    client.delete(task.url)
    wait_after_change(connection, task)
    lose(moment)

    response = client.post(f"{task.url}/restore")

    assert response.status_code == 200
    assert response.json["revision"] == read_revision(connection, task) == task["revision"] + 2


@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_retry_never_overwrites_a_later_change(
    client, task, lose, connection, database_url, method, path, body, conditional
):
    wait_after_change(connection, task)
    lose("response", lambda: update_title(database_url, task, "Written later"))

    response = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    assert response.status_code == 503
    assert "cannot be told" in response.json["detail"]
    assert read_revision(connection, task) == task["revision"] + 2
    (title,) = connection.execute("SELECT title FROM tasks WHERE id = %s", (task["id"],)).fetchone()
    assert title == "Written later"


def test_outcome_is_unknown_when_the_retry_is_lost_too(app, client, task, lose, connection):
    unknown = "todo_database_outcomes_unknown_total"
    wait_after_change(connection, task)
    lose("response", lambda: lose("response"))

    response = client.patch(task.url, json={"title": "Buy oats"})

    assert response.status_code == 503
    assert "cannot be told" in response.json["detail"]
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
    """Wait, so that a retry can tell the task's earlier change from a change after its request."""
    time.sleep(0.15)
    assert read_revision(connection, task)


def update_title(url: str, task, title: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE tasks SET title = %s WHERE id = %s", (title, task["id"]))


def read_revision(connection, task) -> int:
    rows = connection.execute("SELECT revision FROM tasks WHERE id = %s", (task["id"],))
    return rows.fetchone()[0]
