"""Two offline devices with lists and trees lose no write and no response, and end up equal."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.offline_requests import MEMBER_ACTIONS
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
from tests.support.task_model import is_valid
from tests.support.tree_device import TreeDevice

if TYPE_CHECKING:
    from tests.support.offline_requests import Request, Response

SEED = 15
STEPS = 5_000  # of each device
LEVELS = 5

CHANGED = {200, 404, 412, 422}

EXPECTED = {
    "create a list": {201, 409},
    "create a task": {201, 409, 422},
    "patch a list": CHANGED - {422},
    "patch": CHANGED,
    "put": CHANGED - {422},
    "complete": CHANGED - {422},
    "add label": CHANGED - {412},
    "remove label": {200, 404},
    "rename label": {200},
    "place a task": CHANGED | {409},
    "complete a tree": CHANGED - {422},
    "move a list": CHANGED,
    "move a task": CHANGED | {409},
    "delete a list": {200, 404, 412},
    "delete a list to the inbox": {200, 404, 412},
    "delete a task": {204, 404, 412},
    "restore a list": {200, 404},
    "restore a task": {200, 404},
    "sync": {200, 410},
    "empty the trash": {204},
}


class TreeSession(Session):
    """The session of a device that has lists and trees of tasks.

    `done` has the first response to the request whose response was lost, and the owner's state
    after it, or None if another session may have changed it meanwhile.
    """

    device: TreeDevice
    expected = EXPECTED

    def read_items(self) -> dict[str, Any]:
        return read_items(self.connection, self.user_id)

    def check(self, request: Request, response: Response, before: State, after: State) -> None:
        self.check_repeated(request, response, before.owner, after.owner)
        if request.action in MEMBER_ACTIONS:
            self.check_change(request, response, before, after)
        elif request.action in {"create a task", "place a task"} and response.is_success:
            self.check_members(request, response)

    def check_repeated(self, request: Request, response: Response, before: Any, after: Any) -> None:
        """Check the response to a request that has succeeded before, and whose response was lost.

        If nothing has changed since, the response is the same, and takes no revision.
        """
        if self.done is None:
            # With another session at the same time, the state may be the one after its write.
            is_own = self.alone or (response.body and response.json.get("revision") == after[0])
            if request.is_write and response.is_success:
                self.done = (response, after if is_own else None)
            return
        first, state = self.done
        if (before if self.alone else after) != state:
            self.counts["repeated, overtaken"] += 1
            return
        self.counts["repeated, not overtaken"] += 1
        assert after == state, request
        assert response.status == first.status, (request, response)
        if request.action.startswith("delete a list") or request.action == "rename label":
            assert response.json == {"tasks": 0}
        else:
            assert response.body == first.body, request


def assert_valid(items):
    """Check that parents and lists are live, and that no tree is deep or has a cycle."""
    tasks, lists = items["task"], items["list"]
    for task in tasks.values():
        assert is_valid(task)
        assert task["list_id"] is None or task["list_id"] in lists
        levels, above = 1, task
        while above["parent_id"]:
            assert tasks[above["parent_id"]]["list_id"] == task["list_id"]
            above, levels = tasks[above["parent_id"]], levels + 1
            assert levels <= LEVELS


def assert_all_equal(sessions, third):
    """Sync all devices, and compare their copies with the server's rows; return all counts."""
    items, counts = sync_all(sessions, third)
    assert_valid(items)
    assert counts["repeated, not overtaken"] > 0
    return counts


def succeeded(counts):
    """Return the actions that have succeeded."""
    return {key[0] for key in counts if isinstance(key, tuple) and key[1] < 300}


def test_alternating_devices_end_with_the_trees_of_the_server(app, connection, user_id, count):
    choose = random.Random(SEED)
    send = send_by(app.test_client())

    def make_session():
        return TreeSession(TreeDevice(user_id, choose), send, connection, alone=True)

    sessions = [make_session(), make_session()]
    alternate(choose, sessions, count(STEPS, 200))

    counts = assert_all_equal(sessions, make_session())
    assert counts["repeated, overtaken"] > 0
    assert counts["lost request"] > 0
    assert counts["stale, but as requested"] > 0
    assert counts["valid"] > counts["invalid"] > 0
    assert succeeded(counts) == EXPECTED.keys()


@pytest.mark.slow
def test_devices_at_the_same_time_end_with_the_trees_of_the_server(database_url, user_id, count):
    def make_session(send, observer, seed):
        device = TreeDevice(user_id, random.Random(seed))
        return TreeSession(device, send, observer, alone=False)

    with serving_sessions(database_url, make_session) as make:
        sessions = [make(SEED), make(SEED + 1)]
        run_at_the_same_time(sessions, count(STEPS))

        counts = assert_all_equal(sessions, make(SEED + 2))
    assert counts["move a task", 200] > 0
    assert succeeded(counts) >= {"patch", "put", "complete", "add label", "rename label"}
