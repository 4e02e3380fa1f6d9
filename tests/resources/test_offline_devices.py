"""Two offline devices of a user lose no write and no response: they end with the server's tasks."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.offline_device import OfflineDevice
from tests.support.offline_session import (
    Session,
    State,
    alternate,
    read_items,
    run_at_the_same_time,
    send_by,
    serving_sessions,
    sync_all,
)
from tests.support.task_model import find_moment, is_valid

if TYPE_CHECKING:
    from tests.support.offline_requests import Request, Response
    from tests.support.offline_session import Row

SEED = 14
STEPS = 5_000  # of each device

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


class TaskSession(Session):
    """The session of a device that has tasks only.

    `done` has the request whose response was lost, its response, and the row that it has left.
    """

    device: OfflineDevice
    expected = EXPECTED

    def read_items(self) -> dict[str, Any]:
        return read_items(self.connection, self.user_id)["task"]

    def check(self, request: Request, response: Response, before: State, after: State) -> None:
        if request.action != "rename label":
            if self.done:
                self.check_repeated(request, response, before.row, after.row)
            elif request.is_write and response.is_success:
                self.done = (request, response, self.written_row(request, response, after.row))
        if request.action != "create with a key":
            self.check_change(request, response, before, after)

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


def assert_all_equal(sessions, third):
    """Sync all devices; compare their copies with the server's rows, and return all counts."""
    tasks, counts = sync_all(sessions, third)
    for task in tasks.values():
        assert is_valid(task)
        members = [task[name] for name in ("due_date", "due_time", "time_zone")]
        assert task["due_at"] == find_moment(*members)
    assert counts["lost request"] > 0
    assert counts["lost response"] > 0
    assert counts["repeated, not overtaken"] > 0
    return counts


def test_alternating_devices_end_with_the_tasks_of_the_server(app, connection, user_id, count):
    choose = random.Random(SEED)
    reads: set[str] = set()
    send = send_by(app.test_client())

    def send_noting_reads(request: Request) -> Response:
        if not request.is_write:
            reads.add(request.path.partition("?")[0])
        return send(request)

    def make_session() -> TaskSession:
        device = OfflineDevice(user_id, choose)
        return TaskSession(device, send_noting_reads, connection, alone=True)

    sessions = [make_session(), make_session()]
    alternate(choose, sessions, count(STEPS, 300))

    counts = assert_all_equal(sessions, make_session())
    assert counts["repeated, overtaken"] > 0
    assert counts["patch", 412] > 0
    assert counts["stale, but as requested"] > 0
    assert counts["valid"] > counts["invalid"] > 0
    assert counts["rename label", 200] > 0
    assert reads == {f"/api/{user_id}/changes"}


@pytest.mark.slow
def test_devices_at_the_same_time_end_with_the_tasks_of_the_server(database_url, user_id, count):
    def make_session(send, observer, seed):
        device = OfflineDevice(user_id, random.Random(seed))
        return TaskSession(device, send, observer, alone=False)

    with serving_sessions(database_url, make_session) as make:
        sessions = [make(SEED), make(SEED + 1)]
        run_at_the_same_time(sessions, count(STEPS))

        counts = assert_all_equal(sessions, make(SEED + 2))
    assert counts["patch", 412] > 0
