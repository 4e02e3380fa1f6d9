"""Sessions of offline devices: some requests and responses are lost, and all others are checked."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import psycopg

from fault_injection.servers import serving
from tests.support.offline_requests import Response
from tests.support.task_model import NO_TASK, change_members, is_valid
from todo_api.lists.fields import LIST
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flask.testing import FlaskClient

    from tests.support.offline_requests import Request

    Send: TypeAlias = "Callable[[Request], Response]"

LOST = 0.15  # of the requests and responses: half before the server, half after it
MOST_503 = 50  # responses of a busy server

# A task's row: its revision, whether it is in the trash, and its JSON.
Row: TypeAlias = tuple[int, bool, dict[str, Any]] | None

STATE = """
    SELECT users.revision, purged_revision, task.revision, task.deleted_at IS NOT NULL,
           task.json::json,
           CASE WHEN %(label)s::text IS NOT NULL THEN (
               SELECT count(*) FROM tasks WHERE user_id = users.id AND deleted_at IS NULL
                   AND json::jsonb->'labels' @> to_jsonb(%(label)s::text)
           ) END
    FROM users LEFT JOIN tasks AS task ON task.user_id = users.id AND task.id = %(task)s
    WHERE users.id = %(user)s
"""


class Device(Protocol):
    """A device that makes one request at a time."""

    url: str
    choose: random.Random
    copy: dict[str, Any]
    request: Request | None

    def next_request(self) -> Request: ...
    def make_sync(self) -> Request: ...
    def receive(self, response: Response) -> None: ...


class State(NamedTuple):
    """The rows of a request: its task, the number of tasks with its label, and the owner's row.

    `owner` has the owner's revision, and that of the latest removal from the trash.
    """

    row: Row
    labelled: int | None
    owner: tuple[int, int]


class Session:
    """A device's requests, of which some are lost, and the check of each response.

    If the session is `alone`, nothing else happens during its steps, and the state before and after
    a request is known. `expected` has the possible statuses of each action.
    """

    expected: Mapping[str, set[int]]

    def __init__(
        self,
        device: Device,
        send: Send,
        connection: psycopg.Connection[Any],
        *,
        alone: bool,
    ) -> None:
        self.device, self.send, self.connection = device, send, connection
        self.alone = alone
        self.user_id = device.url.removeprefix("/api/")
        self.done: Any = None
        self.actions = 0
        self.counts: Counter[object] = Counter()

    def step(self, lost: float = LOST) -> None:
        """Send the device's request once; the request or its response may be lost."""
        request = self.device.next_request()
        fate = self.device.choose.random()
        if fate < lost / 2:
            self.counts["lost request"] += 1
            return
        before = self.read_state(request)
        response = self.send(request)
        if response.status == 503:
            self.counts["503"] += 1
            assert self.counts["503"] <= MOST_503, response
            return
        assert response.status in self.expected[request.action], (request, response)
        self.check(request, response, before, self.read_state(request))
        if fate < lost:
            self.counts["lost response"] += 1
            return
        self.counts[request.action, response.status] += 1
        self.device.receive(response)
        self.done = None
        if self.device.request is None:
            self.actions += 1
            if self.alone and request.action == "sync":
                assert self.device.copy == self.read_items()

    def finish(self) -> None:
        """Send the last request until it has a response, then sync."""
        while self.device.request:
            self.step()
        self.device.request = self.device.make_sync()
        while self.device.request:
            self.step()

    def read_state(self, request: Request) -> State:
        parameters = {"user": self.user_id, "task": request.task_id, "label": request.label}
        found = self.connection.execute(STATE, parameters).fetchone()
        if found is None:
            return State(None, 0, (0, 0))
        revision, purged_revision, *row, labelled = found
        return State(None if row[0] is None else tuple(row), labelled, (revision, purged_revision))

    def read_items(self) -> dict[str, Any]:
        """Return what the copy of the device must be."""
        raise NotImplementedError

    def check(self, request: Request, response: Response, before: State, after: State) -> None:
        raise NotImplementedError

    def check_change(
        self, request: Request, response: Response, before: State, after: State
    ) -> None:
        """Check the response to a change of members of a task, or to its creation with an id."""
        if request.action == "rename label":
            if self.alone:
                self.check_rename(request, response, before, after)
            return
        if response.is_success and request.body:
            self.check_members(request, response)
        if self.alone:
            self.check_decision(request, response, before.row, after.row)
            self.check_result(request, response, before.row)

    def check_rename(
        self, request: Request, response: Response, before: State, after: State
    ) -> None:
        assert request.body
        is_same = request.body["from"] == request.body["to"]
        assert response.json == {"tasks": 0 if is_same else before.labelled}
        assert is_same or after.labelled == 0

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


def read_items(connection: psycopg.Connection[Any], user_id: str) -> dict[str, dict[str, Any]]:
    """Return the JSON objects of the live tasks and lists, by id, checked against the columns."""
    items: dict[str, dict[str, Any]] = {}
    for resource in (TASK, LIST):
        table = resource.table.name
        rendered = rendered_row(resource.table, resource.field_names, table)
        rows = connection.execute(
            f"SELECT id::text, json, {rendered} FROM {table}"
            " WHERE user_id = %s AND deleted_at IS NULL",
            (user_id,),
        ).fetchall()
        assert [text for _, text, _ in rows] == [expected for *_, expected in rows]
        items[resource.name] = {item_id: json.loads(text) for item_id, text, _ in rows}
    keys = connection.execute("SELECT labels, label_keys FROM tasks WHERE user_id = %s", (user_id,))
    for labels, label_keys in keys:
        assert label_keys == [label.casefold() for label in labels]
    return items


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


@contextmanager
def serving_sessions(
    database_url: str, make_session: Callable[[Send, psycopg.Connection[Any], int], Session]
) -> Iterator[Callable[[int], Session]]:
    """Yield a function that makes a session with connections of its own, from a seed."""
    with serving(database_url) as server, ExitStack() as stack:

        def make(seed: int) -> Session:
            http = HTTPConnection(*server.address, timeout=30)
            stack.callback(http.close)
            observer = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            return make_session(send_over(http), observer, seed)

        yield make


def alternate(choose: random.Random, sessions: Sequence[Session], steps: int) -> None:
    """Let the sessions take turns until each has done this number of actions."""
    while working := [each for each in sessions if each.actions < steps]:
        session = choose.choice(working)
        for _ in range(choose.randrange(1, 3)):
            session.step()


def run_at_the_same_time(sessions: Sequence[Session], steps: int) -> None:
    """Run the sessions at the same time until each has done this number of actions."""

    def work(session: Session) -> None:
        while session.actions < steps:
            session.step()

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(work, sessions))


def sync_all(sessions: Sequence[Session], third: Session) -> tuple[dict[str, Any], Counter[object]]:
    """Sync all devices, and a third one that is new; return the copy of all, and all counts."""
    # The last request of one device may change the copy of another, which then syncs once more.
    for session in (*sessions, *sessions):
        session.finish()
    third.device.request = third.device.make_sync()
    third.finish()
    copies = [session.device.copy for session in (*sessions, third)]
    server = third.read_items()
    assert copies == [server] * len(copies)
    return server, sum((session.counts for session in sessions), Counter())
