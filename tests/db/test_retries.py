"""What is lost between the API and its database: each request is done once, and answered."""

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


class Unreliable(Pool):
    """Loses the connection once: before it was asked anything, or before it could answer."""

    lose: tuple[str, Callable[[], object]] | None = None

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            if self.lose:
                (where, meanwhile), self.lose = self.lose, None
                connection.transact = losing(connection, where, meanwhile)
            yield connection


def losing(connection, where, meanwhile):
    transact = connection.transact

    def lost(*arguments):
        if where == "question":
            connection.close()
        transact(*arguments)
        connection.close()
        meanwhile()
        raise psycopg.OperationalError("the answer is lost")

    return lost


@pytest.fixture
def app(make_settings, log_stream):  # noqa: ARG001  logging comes first
    settings = make_settings()
    application = create_app(settings)
    application.services.pool.close()
    application.services = replace(
        application.services, pool=Unreliable(settings, application.services.metrics)
    )
    yield application
    application.services.pool.close()


@pytest.fixture
def lose(app):
    """Lose the next connection's question, or its answer after doing something else."""

    def once(where: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        app.services.pool.lose = (where, meanwhile)

    return once


WRITES = {
    "PUT": ("PUT", "", {"title": "Buy oats"}),
    "PATCH": ("PATCH", "", {"title": "Buy oats"}),
    "complete": ("PATCH", "/complete", {"completed": True}),
    "DELETE": ("DELETE", "", None),
}
EVERY_WRITE = pytest.mark.parametrize(("method", "path", "body"), WRITES.values(), ids=WRITES)
EITHER = pytest.mark.parametrize("where", ["question", "answer"])


@EITHER
def test_a_read_is_repeated(client, task, lose, where):
    lose(where)

    assert client.get(task.url).json == task


@EITHER
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}])
def test_a_create_is_done_once(client, tasks_url, lose, where, headers):
    lose(where)

    answer = client.post(tasks_url, json={"title": "Buy oat milk"}, headers=headers)

    assert answer.status_code == 201
    assert answer.json["revision"] == 1
    assert "Idempotent-Replayed" not in answer.headers
    assert client.get(tasks_url).json == [answer.json]


@EITHER
def test_a_create_under_a_name_is_done_once(client, tasks_url, lose, where):
    lose(where)

    answer = client.put(
        f"{tasks_url}/{uuid.uuid4()}",
        json={"title": "Buy oat milk"},
        headers={"If-None-Match": "*"},
    )

    assert answer.status_code == 201
    assert client.get(tasks_url).json == [answer.json]


@EITHER
@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_a_change_is_done_once(
    client, task, lose, connection, where, method, path, body, conditional
):
    settle(connection, task)
    lose(where)

    answer = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    assert answer.status_code == (204 if method == "DELETE" else 200)
    assert revision(connection, task) == task["revision"] + 1


@EITHER
def test_a_restore_is_done_once(client, task, lose, connection, where):
    client.delete(task.url)
    settle(connection, task)
    lose(where)

    answer = client.post(f"{task.url}/restore")

    assert answer.status_code == 200
    assert answer.json["revision"] == revision(connection, task) == task["revision"] + 2


@EVERY_WRITE
@pytest.mark.parametrize("conditional", [True, False])
def test_a_repetition_never_overwrites_what_came_after(
    client, task, lose, connection, database_url, method, path, body, conditional
):
    settle(connection, task)
    lose("answer", lambda: by_hand(database_url, task, "Mine, and later"))

    answer = client.open(
        task.url + path,
        method=method,
        json=body,
        headers={"If-Match": task.etag} if conditional else {},
    )

    assert answer.status_code == 503
    assert "cannot be told" in answer.json["detail"]
    assert revision(connection, task) == task["revision"] + 2
    (title,) = connection.execute("SELECT title FROM tasks WHERE id = %s", (task["id"],)).fetchone()
    assert title == "Mine, and later"


def test_a_change_whose_repetition_is_lost_too_is_unknown(app, client, task, lose, connection):
    unknown = "todo_database_outcomes_unknown_total"
    settle(connection, task)
    lose("answer", lambda: lose("answer"))

    answer = client.patch(task.url, json={"title": "Buy oats"})

    assert answer.status_code == 503
    assert "cannot be told" in answer.json["detail"]
    assert app.services.metrics.registry.get_sample_value(unknown) == 1


@EITHER
def test_a_change_that_fails_to_hold_fails_the_second_time_too(client, task, lose, where):
    time.sleep(0.2)
    lose(where)

    answer = client.patch(task.url, json={"title": "Buy oats"}, headers={"If-Match": etag(999)})

    assert answer.status_code == 412
    assert answer.json["current"] == task


@EITHER
def test_what_is_not_there_is_not_there_the_second_time_either(client, tasks_url, lose, where):
    lose(where)

    assert client.delete(f"{tasks_url}/{uuid.uuid4()}").status_code == 404


@EITHER
def test_a_user_is_erased_once(client, task, user_id, tasks_url, lose, where):
    lose(where)

    assert client.delete(f"/api/{user_id}").status_code == 204
    assert client.get(tasks_url).json == []
    assert client.get(task.url).status_code == 404


def test_terminated_connections_are_not_noticed(app, client, tasks_url, database_url, make_task):
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


def settle(connection, task):
    """Let the task's latest change be long ago."""
    time.sleep(0.15)
    assert revision(connection, task)


def by_hand(url: str, task, title: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("UPDATE tasks SET title = %s WHERE id = %s", (title, task["id"]))


def revision(connection, task) -> int:
    found = connection.execute("SELECT revision FROM tasks WHERE id = %s", (task["id"],))
    return found.fetchone()[0]
