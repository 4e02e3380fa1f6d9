"""Two offline devices of a user lose no write and no response: they end with the server's tasks."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import pytest

from fault_injection.servers import serving
from tests.support.offline_device import OfflineDevice, Request, Response
from tests.support.task_model import NO_TASK, change_members, find_moment, is_valid
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient

    Send: TypeAlias = Callable[[Request], Response]

SEED = 14
STEPS = 5_000  # of each device
MOST_503 = 20  # responses of a busy server
LOST = 0.15  # of the requests and responses: half before the server, half after it

EXPECTED = {
    "create": {201, 409},
    "create with a key": {201},
    "patch": {200, 404, 412, 422},
    "put": {200, 404, 412},
    "complete": {200, 404, 412},
    "add label": {200, 404, 422},
    "remove label": {200, 404},
    "rename label": {200},
    "delete": {204, 404, 412},
    "restore": {200, 404, 412},
    "sync": {200, 304, 410},
    "empty trash": {204},
}

# A task's row: its revision, whether it is in the trash, and its JSON.
Row: TypeAlias = tuple[int, bool, dict[str, Any]] | None


class Session:
    """A device's requests, of which some are lost, and the test of each response.

    If the session is `alone`, nothing else happens during its steps, and the row of a task is known
    before and after a request.
    """

    def __init__(
        self,
        device: OfflineDevice,
        send: Send,
        connection: psycopg.Connection[Any],
        choose: random.Random,
        *,
        alone: bool,
    ) -> None:
        self.device, self.send, self.connection = device, send, connection
        self.choose, self.alone = choose, alone
        self.user_id = device.url.removeprefix("/api/")
        self.done: tuple[Request, Response, Row] | None = None
        self.actions = 0
        self.counts: Counter[object] = Counter()

    def step(self, lost: float = LOST) -> None:
        """Send the device's request once; the request or its response may be lost."""
        request = self.device.next_request()
        fate = self.choose.random()
        if fate < lost / 2:
            self.counts["lost request"] += 1
            return
        before = self.read_row(request)
        labelled = self.count_labelled(request)
        response = self.send(request)
        if response.status == 503:
            self.counts["503"] += 1
            assert self.counts["503"] <= MOST_503, response
            return
        self.check(request, response, before, self.read_row(request))
        if self.alone and request.action == "rename label":
            self.check_rename(request, response, labelled)
        if fate < lost:
            self.counts["lost response"] += 1
            return
        self.counts[request.action, response.status] += 1
        self.device.receive(response)
        self.done = None
        if self.device.request is None:
            self.actions += 1
            if self.alone and request.action == "sync":
                self.check_copy()

    def finish(self) -> None:
        """Send the last request until it has a response, then sync."""
        while self.device.request:
            self.step()
        self.device.request = self.device.make_sync()
        while self.device.request:
            self.step()

    def read_row(self, request: Request) -> Row:
        return self.connection.execute(
            "SELECT revision, deleted_at IS NOT NULL, json::json FROM tasks"
            " WHERE user_id = %s AND id = %s",
            (self.user_id, request.task_id),
        ).fetchone()

    def count_labelled(self, request: Request) -> int:
        """Return the number of tasks with the label of the request."""
        row = self.connection.execute(
            "SELECT count(*) FROM tasks WHERE user_id = %s AND deleted_at IS NULL"
            " AND json::jsonb->'labels' @> to_jsonb(%s::text)",
            (self.user_id, request.label),
        ).fetchone()
        return row[0] if row else 0

    def check_rename(self, request: Request, response: Response, labelled: int) -> None:
        assert request.body
        is_same = request.body["from"] == request.body["to"]
        assert response.json == {"tasks": 0 if is_same else labelled}
        assert is_same or self.count_labelled(request) == 0

    def check(self, request: Request, response: Response, before: Row, after: Row) -> None:
        assert response.status in EXPECTED[request.action], (request, response)
        if request.action == "rename label":
            return
        if self.done:
            self.check_repeated(request, response, before, after)
        elif request.is_write and response.is_success:
            self.done = (request, response, self.written_row(request, response, after))
        if response.is_success and request.body and request.action != "create with a key":
            self.check_members(request, response)
        if self.alone:
            self.check_decision(request, response, before, after)
            self.check_result(request, response, before)

    def written_row(self, request: Request, response: Response, after: Row) -> Row:
        """Return the row as the request has left it."""
        if self.alone or request.action == "delete":
            return after if after and after[1] == (request.action == "delete") else None
        return (response.json["revision"], False, response.json) if response.body else None

    def check_repeated(self, request: Request, response: Response, before: Row, after: Row) -> None:
        """Check the response to a request that has succeeded before, and whose response was lost.

        With another session at the same time, a row that still is as the request left it has not
        been overtaken.
        """
        assert self.done
        of, first, written = self.done
        assert of is request
        if request.has_key or request.action == "empty trash":
            assert (response.status, response.body) == (first.status, first.body)
            assert request.action == "empty trash" or "idempotent-replayed" in response.headers
            self.counts["repeated, with a key or of the trash"] += 1
        elif written is not None and (before if self.alone else after) == written:
            assert (response.status, response.body) == (first.status, first.body), request
            assert after == written, request
            self.counts["repeated, not overtaken"] += 1
        else:
            self.counts["repeated, overtaken"] += 1
            self.counts["overtaken", response.status] += 1

    def check_members(self, request: Request, response: Response) -> None:
        """Check that a success has what was requested."""
        assert request.body
        task = response.json
        is_patch = request.method == "PATCH"
        expected = change_members(task, request.body, is_patch=is_patch)
        assert expected == {name: task[name] for name in expected}, (request, response)

    def check_result(self, request: Request, response: Response, before: Row) -> None:
        """Check each member of a task that was changed or created, and each refusal, by a model."""
        is_stale = before is not None and request.base not in {None, before[0]}
        is_live = before is not None and not before[1]
        changes = request.body or {}
        if request.action == "create" and before is None:
            task, is_patch = NO_TASK, False
        elif request.action in {"patch", "put", "complete"} and is_live and not is_stale:
            task, is_patch = before[2], request.method == "PATCH"
            if request.action == "complete":
                changes = {"completed": True} | changes
        elif request.action in {"add label", "remove label"} and is_live:
            task, is_patch = before[2], True
            labels = set(task["labels"])
            is_added = request.action == "add label"
            changes = {
                "labels": [*(labels | {request.label} if is_added else labels - {request.label})]
            }
        else:
            return
        expected = change_members(task, changes, is_patch=is_patch)
        assert is_valid(expected) == response.is_success, (request, response, before)
        self.counts["valid" if response.is_success else "invalid"] += 1
        if response.is_success:
            result = response.json
            if expected["completed_at"] == "now":
                expected["completed_at"] = result["updated_at"]
            assert expected == {name: result[name] for name in expected}, (request, before)
            is_changed = any(task[name] != expected[name] for name in expected)
            assert task is NO_TASK or is_changed == (result["revision"] != before[0])

    def check_decision(self, request: Request, response: Response, before: Row, after: Row) -> None:
        """Check a refusal, and a success in spite of a stale revision, by the task's row."""
        is_stale = before is not None and request.base not in {None, before[0]}
        if response.status == 412:
            assert is_stale, (request, before)
            assert before
            assert response.json["current"]["revision"] == before[0]
        elif response.status == 404:
            assert before is None or (before[1] and request.action != "restore"), request
        elif response.status == 409:
            assert before is not None, request
        elif is_stale:
            self.counts["stale, but as requested"] += 1
            assert after == before, (request, before, after)
        if request.task_id and not response.is_success:
            assert after == before

    def check_copy(self) -> None:
        """Check that the copy is the server's tasks."""
        assert self.device.copy == read_tasks(self.connection, self.user_id)


def read_tasks(connection, user_id):
    """Return the JSON objects of the live tasks, by id, and check them against the columns."""
    rendered = rendered_row(TASK.table, TASK.field_names, "tasks")
    rows = connection.execute(
        f"SELECT id::text, json, {rendered}, labels, label_keys FROM tasks"
        " WHERE user_id = %s AND deleted_at IS NULL",
        (user_id,),
    )
    tasks = {}
    for task_id, text, rendered_text, labels, label_keys in rows:
        assert text == rendered_text
        assert label_keys == [label.casefold() for label in labels]
        tasks[task_id] = json.loads(text)
    return tasks


def send_by(client: FlaskClient) -> Send:
    """Return a function that sends requests by Flask's test client."""

    def send(request: Request) -> Response:
        answer = client.open(
            request.path, method=request.method, json=request.body, headers=request.fields
        )
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status_code, headers, answer.data)

    return send


def send_over(connection: HTTPConnection) -> Send:
    """Return a function that sends requests over one connection, which is kept alive."""

    def send(request: Request) -> Response:
        body = None if request.body is None else json.dumps(request.body)
        media_type = {} if body is None else {"Content-Type": "application/json"}
        connection.request(request.method, request.path, body, request.fields | media_type)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, headers, answer.read())

    return send


def assert_all_equal(sessions, third, connection, user_id):
    """Sync all devices; compare their copies with the server's rows, and count other reads."""
    # The last request of one device may change the copy of another, which then syncs once more.
    for session in (*sessions, *sessions):
        session.finish()
    third.device.request = third.device.make_sync()
    third.finish()
    first, second = (session.device.copy for session in sessions)
    assert first == second == third.device.copy == read_tasks(connection, user_id)
    for task in first.values():
        assert is_valid(task)
        members = [task[name] for name in ("due_date", "due_time", "time_zone")]
        assert task["due_at"] == find_moment(*members)
    counts = sum((session.counts for session in sessions), Counter())
    assert counts["lost request"] > 0
    assert counts["lost response"] > 0
    assert counts["repeated, not overtaken"] > 0
    return counts


def test_alternating_devices_end_with_the_tasks_of_the_server(app, connection, user_id, count):
    steps = count(STEPS, 300)
    choose = random.Random(SEED)
    reads: set[str] = set()
    send = send_by(app.test_client())

    def send_noting_reads(request: Request) -> Response:
        if not request.is_write:
            reads.add(request.path.partition("?")[0])
        return send(request)

    def make_session() -> Session:
        device = OfflineDevice(user_id, choose)
        return Session(device, send_noting_reads, connection, choose, alone=True)

    sessions = [make_session(), make_session()]
    while working := [each for each in sessions if each.actions < steps]:
        session = choose.choice(working)
        for _ in range(choose.randrange(1, 3)):
            session.step()

    counts = assert_all_equal(sessions, make_session(), connection, user_id)
    assert counts["repeated, overtaken"] > 0
    assert counts["patch", 412] > 0
    assert counts["stale, but as requested"] > 0
    assert counts["valid"] > counts["invalid"] > 0
    assert counts["rename label", 200] > 0
    assert reads == {f"/api/{user_id}/changes"}


@pytest.mark.slow
def test_devices_at_the_same_time_end_with_the_tasks_of_the_server(
    database_url, connection, user_id, count
):
    steps = count(STEPS)
    with serving(database_url) as server, ExitStack() as stack:

        def make_session(seed: int) -> Session:
            http = HTTPConnection(*server.address, timeout=30)
            stack.callback(http.close)
            observer = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            choose = random.Random(seed)
            device = OfflineDevice(user_id, choose)
            return Session(device, send_over(http), observer, choose, alone=False)

        def work(session: Session) -> None:
            while session.actions < steps:
                session.step()

        sessions = [make_session(SEED), make_session(SEED + 1)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, sessions))

        counts = assert_all_equal(sessions, make_session(SEED + 2), connection, user_id)
    assert counts["patch", 412] > 0
