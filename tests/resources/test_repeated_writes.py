"""A write can be sent again as it is: if the requested state exists, the response is a success."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations_with_replacement, permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from tests.support.locks import wait_for_sessions
from todo_api.db.pool import Pool
from todo_api.db.statement import Statement
from todo_api.resources.items import MAX_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse


class Write(NamedTuple):
    """A request on one task, and whether it has `If-Match` with the task's first revision.

    A path that begins with `..` is relative to the user's path. The task's id replaces an `id` of
    None in the body.
    """

    method: str
    path: str = ""
    body: dict[str, Any] | None = None
    is_conditional: bool = True

    def send(self, client: FlaskClient, task: dict[str, Any], **headers: str) -> TestResponse:
        if self.is_conditional:
            headers.setdefault("If-Match", f'"{task["revision"]}"')
        url = f"/api/{task['user_id']}/tasks/{task['id']}{self.path}"
        if self.path.startswith(".."):
            url = f"/api/{task['user_id']}{self.path.removeprefix('..')}"
        body = self.body
        if body and body.get("id", task) is None:
            body = body | {"id": task["id"]}
        return client.open(url, method=self.method, json=body, headers=headers)


WRITES = {
    "PUT": Write("PUT", body={"title": "First", "description": "By PUT"}),
    "PATCH": Write("PATCH", body={"title": "First"}),
    "complete": Write("PATCH", "/complete"),
    "reopen": Write("PATCH", "/complete", {"completed": False}),
    "DELETE": Write("DELETE"),
    "restore": Write("POST", "/restore"),
}


@pytest.fixture
def read_rows(connection, user_id):
    """Return a function that reads where the rows of a task and of its owner are stored.

    Any change or lock of a row gives it another xmin, xmax or ctid.
    """

    def read(task_id: str) -> list[tuple[Any, ...]]:
        version = "xmin::text, xmax::text, ctid::text, revision"
        tasks = connection.execute(f"SELECT {version} FROM tasks WHERE id = %s", (task_id,))
        users = connection.execute(f"SELECT {version} FROM users WHERE id = %s", (user_id,))
        return [*tasks, *users]

    return read


@pytest.fixture
def task_before(client, connection, make_task):
    """Return a function that makes a task on which a write has an effect."""

    def make(name: str) -> dict[str, Any]:
        task = make_task(completed=name == "reopen")
        if name == "restore":
            WRITES["DELETE"].send(client, task)
            row = connection.execute("SELECT revision FROM tasks WHERE id = %s", (task["id"],))
            task["revision"] = row.fetchone()[0]
        return task

    return make


@pytest.mark.parametrize("name", WRITES)
def test_repeated_write_with_a_stale_if_match_succeeds_and_writes_nothing(
    client, task_before, read_rows, name
):
    task = task_before(name)
    first = WRITES[name].send(client, task)
    rows = read_rows(task["id"])

    again = WRITES[name].send(client, task)

    assert first.status_code in {200, 204}
    assert rows[0][-1] > task["revision"], "the first request had an effect"
    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert again.headers.get("ETag") == first.headers.get("ETag")
    assert read_rows(task["id"]) == rows


@pytest.mark.parametrize("name", ["PUT", "PATCH"])
def test_repeated_write_with_a_stale_revision_in_the_body_succeeds_and_writes_nothing(
    client, task, read_rows, name
):
    write = WRITES[name]._replace(is_conditional=False)
    write = write._replace(body={**task, **write.body})
    first = write.send(client, task)
    rows = read_rows(task["id"])

    again = write.send(client, task)

    assert first.json["revision"] > task["revision"]
    assert (again.status_code, again.data) == (200, first.data)
    assert read_rows(task["id"]) == rows


@pytest.mark.parametrize("name", WRITES)
def test_repeated_write_whose_if_none_match_fails_is_refused_and_writes_nothing(
    client, task_before, read_rows, name
):
    task = task_before(name)
    write = WRITES[name]._replace(is_conditional=False)
    first = write.send(client, task)
    rows = read_rows(task["id"])

    again = write.send(client, task, **{"If-None-Match": f'"{rows[0][-1]}"'})
    with_a_former_revision = write.send(client, task, **{"If-None-Match": f'"{task["revision"]}"'})

    # RFC 9110, section 13.1.2, has no exception, but a task in the trash has no representation.
    assert again.status_code == (204 if name == "DELETE" else 412)
    assert with_a_former_revision.data == first.data
    assert read_rows(task["id"]) == rows


@pytest.mark.parametrize("name", WRITES)
def test_repeated_write_without_a_precondition_succeeds_and_writes_nothing(
    client, task_before, read_rows, name
):
    task = task_before(name)
    write = WRITES[name]._replace(is_conditional=False)
    first = write.send(client, task)
    rows = read_rows(task["id"])

    again = write.send(client, task)

    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert read_rows(task["id"]) == rows


def test_repeated_post_with_an_id_succeeds_and_writes_nothing(client, tasks_url, read_rows):
    task = {"id": str(uuid.uuid4()), "title": "First", "description": "By POST"}
    first = client.post(tasks_url, json=task)
    rows = read_rows(task["id"])

    again = client.post(tasks_url, json=task)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.data == first.data
    assert [again.headers[name] for name in ("ETag", "Location")] == [
        first.headers[name] for name in ("ETag", "Location")
    ]
    assert read_rows(task["id"]) == rows


@pytest.mark.parametrize("name", WRITES)
def test_write_with_a_stale_if_match_is_refused_after_another_change(
    client, task_before, read_rows, name
):
    task = task_before(name)
    WRITES[name].send(client, task)
    opposite = {"DELETE": "restore", "restore": "DELETE", "complete": "reopen"}
    undo = Write("PATCH", body={"title": "Other", "completed": name == "reopen"})
    undo = WRITES.get(opposite.get(name, ""), undo)
    assert undo._replace(is_conditional=False).send(client, task).status_code in {200, 204}
    rows = read_rows(task["id"])

    refused = WRITES[name].send(client, task)

    assert refused.status_code == 412
    assert refused.json["current"]["revision"] == rows[0][-1]
    assert read_rows(task["id"]) == rows


# The change, as SQL, that a transaction commits while a request waits for the task's row. None: the
# transaction rolls back.
HELD = {
    "other values": "UPDATE tasks SET title = 'Other' WHERE id = %s",
    "the requested title": "UPDATE tasks SET title = 'First' WHERE id = %s",
    "a deletion": "UPDATE tasks SET deleted_at = clock_timestamp() WHERE id = %s",
    "nothing": None,
}
RACING = {
    **WRITES,
    "PATCH of another title": Write("PATCH", body={"title": "Second"}),
    "PATCH without a condition": Write("PATCH", body={"title": "First"}, is_conditional=False),
}
del RACING["reopen"]

# The same of a task that is in the trash at first.
HELD_IN_TRASH = {
    "a restore": "UPDATE tasks SET deleted_at = NULL WHERE id = %s",
    "a purge": "DELETE FROM tasks WHERE id = %s",
    "nothing": None,
}
RACING_IN_TRASH = {
    "restore": WRITES["restore"],
    "PATCH": WRITES["PATCH"],
    "DELETE": WRITES["DELETE"],
    "POST": Write("POST", "../tasks", {"id": None, "title": "First"}, is_conditional=False),
    "DELETE of the trash": Write("DELETE", "../trash", is_conditional=False),
}


@pytest.mark.parametrize("effect", HELD)
@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(RACING, 2)))
def test_writes_that_wait_for_a_lock_get_the_responses_of_a_serial_order(
    app, make_task, connection, database_url, first, second, effect
):
    writes = (RACING[first], RACING[second])
    change = HELD[effect]
    task = make_task()

    responses = send_while_held(app, database_url, task, writes, change)

    outcome = describe(task, responses, connection)
    outcomes = serial_outcomes(app.test_client(), make_task, connection, writes, change)
    assert outcome in list(outcomes)


@pytest.mark.parametrize("effect", HELD_IN_TRASH)
@pytest.mark.parametrize(
    ("first", "second"), list(combinations_with_replacement(RACING_IN_TRASH, 2))
)
def test_writes_to_the_trash_that_wait_for_a_lock_get_the_responses_of_a_serial_order(
    app, task_before, connection, database_url, first, second, effect
):
    writes = (RACING_IN_TRASH[first], RACING_IN_TRASH[second])
    change = HELD_IN_TRASH[effect]
    task = task_before("restore")

    responses = send_while_held(app, database_url, task, writes, change)

    outcome = describe(task, responses, connection)
    outcomes = serial_outcomes(
        app.test_client(), lambda: task_before("restore"), connection, writes, change
    )
    assert outcome in list(outcomes)


def send_while_held(app, database_url, task, writes, change):
    """Send two writes while a transaction holds the task's row; return their responses."""
    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(2) as pool:
        holder.execute(change or HELD["other values"], (task["id"],))
        waiting = [pool.submit(write.send, app.test_client(), task) for write in writes]
        wait_for_sessions(database_url, lambda: sum(not each.done() for each in waiting))
        if change is None:
            holder.rollback()
        else:
            holder.commit()
        return [each.result(timeout=10) for each in waiting]


def serial_outcomes(client, make_task, connection, writes, change):
    """Yield the outcome of each order in which the writes and the change can follow each other."""
    steps = range(len(writes) + (change is not None))
    for order in permutations(steps):
        task = make_task()
        responses: list[Any] = [None, None]
        for step in order:
            if step < len(writes):
                responses[step] = writes[step].send(client, task)
            else:
                connection.execute(change, (task["id"],))
        yield describe(task, responses, connection)


def describe(task, responses, connection):
    """Return statuses, tasks and the row at the end; revisions are numbered from 0."""
    row = connection.execute(
        "SELECT title, description, completed, deleted_at IS NOT NULL, revision"
        " FROM tasks WHERE id = %s",
        (task["id"],),
    ).fetchone()
    bodies = [response.json or {} for response in responses]
    tasks = [body.get("current", body) for body in bodies]
    seen = {task["revision"], row and row[-1], *(each.get("revision") for each in tasks)}
    numbers = {revision: number for number, revision in enumerate(sorted(seen - {None}))}
    members = ("title", "description", "completed")
    return (
        [response.status_code for response in responses],
        [
            ([each.get(name) for name in members], numbers.get(each.get("revision")))
            for each in tasks
        ],
        row and (row[:-1], numbers[row[-1]]),
    )


CREATIONS = {
    "id": (True, {}),
    "key": (False, {"Idempotency-Key": "a-key"}),
    "id and key": (True, {"Idempotency-Key": "a-key"}),
}


@pytest.mark.parametrize("has_id", [True, False], ids=["same id", "another id"])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("name", CREATIONS)
def test_creation_that_is_sent_again_before_its_first_response_creates_once(
    app, connection, database_url, tasks_url, user_id, name, ending, has_id
):
    sends_id, headers = CREATIONS[name]
    task_id = str(uuid.uuid4())
    body = {"title": "First"} | ({"id": task_id} if sends_id else {})
    held_id = task_id if has_id else str(uuid.uuid4())

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(2) as pool:
        holder.execute(
            "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, 'Other')", (user_id, held_id)
        )
        waiting = [
            pool.submit(app.test_client().post, tasks_url, json=body, headers=headers)
            for _ in range(2)
        ]
        wait_for_sessions(database_url, lambda: 2)
        getattr(holder, ending)()
        first, second = [each.result(timeout=10) for each in waiting]

    is_taken = sends_id and has_id and ending == "commit"
    created = connection.execute(
        "SELECT count(*) FROM tasks WHERE user_id = %s AND title = 'First'", (user_id,)
    ).fetchone()
    assert first.status_code == second.status_code == (409 if is_taken else 201)
    assert created == (0 if is_taken else 1,)
    if not is_taken:
        assert first.data == second.data


@pytest.mark.parametrize("name", CREATIONS)
def test_creation_that_waits_for_the_erasure_of_its_user_creates(
    app, database_url, task, tasks_url, user_id, name
):
    sends_id, headers = CREATIONS[name]
    members = ("id", "title", "description") if sends_id else ("title",)
    body = {member: task[member] for member in members}

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("DELETE FROM users WHERE id = %s", (user_id,))
        waiting = pool.submit(app.test_client().post, tasks_url, json=body, headers=headers)
        wait_for_sessions(database_url, lambda: not waiting.done())
        holder.commit()
        response = waiting.result(timeout=10)

    if not headers and sends_id:
        # The request ends before the erasure: it has nothing to write.
        assert (response.status_code, response.json) == (201, task)
    else:
        assert response.status_code == 201
        assert response.json["revision"] > task["revision"]
        assert app.test_client().get(tasks_url).json == [response.json]


def test_repeated_creations_that_wait_for_the_erasure_of_their_user_create_once(
    app, database_url, task, tasks_url, user_id
):
    body = {member: task[member] for member in ("id", "title", "description")}
    headers = {"Idempotency-Key": "a-key"}

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(3) as pool:
        holder.execute("DELETE FROM users WHERE id = %s", (user_id,))
        waiting = [
            pool.submit(app.test_client().post, tasks_url, json=body, headers=headers)
            for _ in range(3)
        ]
        wait_for_sessions(database_url, lambda: 3)
        holder.commit()
        responses = [each.result(timeout=10) for each in waiting]

    assert [response.status_code for response in responses] == [201] * 3
    assert len({response.data for response in responses}) == 1


PAUSE_KEY = 13
PAUSE = Statement(f"SELECT pg_advisory_xact_lock_shared({PAUSE_KEY})".encode())


class PausingPool(Pool):
    """A pool whose writes pause before their last statement, which reads the outcome.

    Each transaction takes one pair of functions from `interferences`. The first function runs
    before the transaction, the second between its statements, while it waits for a lock.
    """

    def __init__(self, *arguments: Any, url: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = url
        self.interferences: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self.transactions = 0

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            transact = connection.transact

            def transact_with_a_pause(statements, values, deadline):
                self.transactions += 1
                if not self.interferences:
                    return transact(statements, values, deadline)
                before, between = self.interferences.pop(0)
                before()
                with self.interfere(between):
                    *others, find_outcome = statements
                    rows = transact([*others, PAUSE, find_outcome], values, deadline)
                return [*rows[:-2], rows[-1]]

            connection.transact = transact_with_a_pause
            try:
                yield connection
            finally:
                del connection.transact

    @contextmanager
    def interfere(self, between):
        """Run `between` in another thread when a session waits for the lock, then release it."""
        locked = threading.Event()

        def hold():
            with psycopg.connect(self.url, autocommit=True) as holder:
                holder.execute("SELECT pg_advisory_lock(%s)", (PAUSE_KEY,))
                locked.set()
                wait_for_sessions(self.url, lambda: 1)
                between()

        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(hold)
            assert locked.wait(10)
            yield
            holding.result(timeout=10)


@pytest.fixture
def pausing(make_app, make_settings, database_url):
    """An application whose pool is a PausingPool."""
    application = make_app()
    application.services.pool.close()
    pool = PausingPool(make_settings(), application.services.metrics, url=database_url)
    application.services = replace(application.services, pool=pool)
    yield application
    pool.close()


class ImpatientPool(Pool):
    """A pool that treats the connection as lost if its first transaction waits for a lock."""

    has_waited = False

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            if not self.has_waited:
                self.has_waited = True
                transact = connection.transact
                connection.transact = lambda statements, values, _: transact(
                    statements, values, time.monotonic() + 0.1
                )
            yield connection


@pytest.fixture
def impatient(make_app, make_settings):
    """An application whose pool is an ImpatientPool."""
    application = make_app()
    application.services.pool.close()
    pool = ImpatientPool(make_settings(), application.services.metrics)
    application.services = replace(application.services, pool=pool)
    yield application
    pool.close()


@pytest.mark.parametrize("name", CREATIONS)
def test_creation_whose_retry_overlaps_its_first_run_creates_once(
    impatient, app, task, database_url, tasks_url, user_id, name
):
    sends_id, headers = CREATIONS[name]
    body = {"title": "New"} | ({"id": str(uuid.uuid4())} if sends_id else {})

    with psycopg.connect(database_url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
        waiting = pool.submit(impatient.test_client().post, tasks_url, json=body, headers=headers)
        wait_for_sessions(database_url, lambda: 2)
        holder.rollback()
        response = waiting.result(timeout=10)

    assert response.status_code == 201
    assert app.test_client().get(tasks_url).json == [response.json, task]


def nothing() -> None:
    """Interfere with nothing."""


# When the UPDATE runs, the task already is as requested, so the UPDATE changes nothing. Before the
# next statement reads the task, another session undoes that state.
AMBIGUOUS = {
    "PATCH": (Write("PATCH", body={"title": "First"}, is_conditional=False), "title = 'First'"),
    "PUT": (Write("PUT", body={"title": "First"}, is_conditional=False), "title = 'First'"),
    "complete": (Write("PATCH", "/complete", is_conditional=False), "completed = true"),
    "DELETE": (Write("DELETE", is_conditional=False), "deleted_at = clock_timestamp()"),
    "restore": (Write("POST", "/restore", is_conditional=False), "deleted_at = NULL"),
}
UNDONE = {
    "PATCH": "title = 'Other'",
    "PUT": "title = 'Other'",
    "complete": "completed = false",
    "DELETE": "deleted_at = NULL",
    "restore": "deleted_at = clock_timestamp()",
}


@pytest.fixture
def set_row(database_url):
    """Return a function that sets columns of a task on a separate connection."""

    def set_columns(task: dict[str, Any], assignment: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(f"UPDATE tasks SET {assignment} WHERE id = %s", (task["id"],))

    return set_columns


@pytest.fixture
def has_state(connection):
    """Return a function that tells whether a task has the value of an assignment."""

    def read(task: dict[str, Any], assignment: str) -> bool:
        column, _, value = assignment.partition(" = ")
        condition = f"{column} IS NOT NULL" if "clock" in value else assignment
        condition = f"{column} IS NULL" if value == "NULL" else condition
        row = connection.execute(f"SELECT {condition} FROM tasks WHERE id = %s", (task["id"],))
        return row.fetchone()[0]

    return read


@pytest.mark.parametrize("attempts", [1, MAX_ATTEMPTS - 1])
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_write_makes_a_new_attempt_if_the_requested_state_is_undone_before_it_is_read(
    pausing, task, set_row, has_state, read_rows, name, attempts
):
    write, state = AMBIGUOUS[name]
    pool = pausing.services.pool
    pool.interferences = [
        (lambda: set_row(task, state), lambda: set_row(task, UNDONE[name]))
    ] * attempts

    response = write.send(pausing.test_client(), task)

    assert response.status_code in {200, 204}
    assert pool.transactions == attempts + 1
    assert has_state(task, state)
    if response.status_code == 200:
        assert response.json["revision"] == read_rows(task["id"])[0][-1]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_write_is_a_503_without_a_change_if_the_requested_state_is_undone_in_each_attempt(
    pausing, task, set_row, has_state, read_rows, name
):
    write, state = AMBIGUOUS[name]
    pool = pausing.services.pool
    rows = []

    def undo():
        set_row(task, UNDONE[name])
        rows[:] = read_rows(task["id"])

    pool.interferences = [(lambda: set_row(task, state), undo)] * MAX_ATTEMPTS

    response = write.send(pausing.test_client(), task)

    assert response.status_code == 503
    assert "Retry-After" in response.headers
    assert pool.transactions == MAX_ATTEMPTS
    assert read_rows(task["id"]) == rows
    assert write.send(pausing.test_client(), task).status_code in {200, 204}
    assert has_state(task, state)


@pytest.mark.parametrize("name", ["PATCH", "PUT", "complete"])
def test_conditional_write_whose_state_is_undone_is_refused(pausing, task, set_row, name):
    write, state = AMBIGUOUS[name]
    set_row(task, state)
    known = pausing.test_client().get(task.url).json
    pool = pausing.services.pool
    pool.interferences = [(nothing, lambda: set_row(task, UNDONE[name]))]

    response = write._replace(is_conditional=True).send(pausing.test_client(), known)

    assert response.status_code == 412
    assert response.json["current"]["revision"] > known["revision"]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_write_to_a_task_that_is_erased_before_its_outcome_is_read_is_a_404(
    pausing, app, task, user_id, set_row, name
):
    write, state = AMBIGUOUS[name]
    pausing.services.pool.interferences = [
        (lambda: set_row(task, state), lambda: app.test_client().delete(f"/api/{user_id}"))
    ]

    assert write.send(pausing.test_client(), task).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}], ids=["id", "id and key"])
def test_post_creates_if_the_id_is_removed_from_the_trash_meanwhile(
    pausing, app, task, user_id, headers
):
    client = app.test_client()
    client.delete(task.url)
    pool = pausing.services.pool
    pool.interferences = [(nothing, lambda: client.delete(f"/api/{user_id}/trash"))]
    body = {"id": task["id"], "title": "New"}

    response = pausing.test_client().post(f"/api/{user_id}/tasks", json=body, headers=headers)

    assert response.status_code == 201
    assert pool.transactions == 2
    assert client.get(task.url).json == response.json
    assert response.json["revision"] > task["revision"]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "a-key"}], ids=["id", "id and key"])
def test_post_with_an_id_that_is_purged_each_time_is_a_503(
    pausing, app, tasks_url, user_id, headers
):
    client = app.test_client()
    body = {"id": str(uuid.uuid4()), "title": "New"}

    def put_into_trash():
        assert client.post(tasks_url, json={**body, "title": "Old"}).status_code == 201
        assert client.delete(f"{tasks_url}/{body['id']}").status_code == 204

    purge = (put_into_trash, lambda: client.delete(f"/api/{user_id}/trash"))
    pausing.services.pool.interferences = [purge] * MAX_ATTEMPTS

    response = pausing.test_client().post(tasks_url, json=body, headers=headers)

    assert response.status_code == 503
    assert client.get(f"{tasks_url}/{body['id']}").status_code == 404
