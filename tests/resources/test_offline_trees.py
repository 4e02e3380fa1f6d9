"""Two offline devices with lists and trees lose no write and no response, and end up equal."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection

import psycopg
import pytest

from fault_injection.servers import serving
from tests.support.offline_device import Response
from tests.support.tree_device import TreeDevice

SEED = 15
STEPS = 5_000  # of each device
LOST = 0.15  # of the requests and responses: half before the server, half after it
MOST_503 = 50  # responses of a busy server
LEVELS = 5

CHANGED = {200, 404, 412, 422}
EXPECTED = {
    "create a list": {201, 409},
    "create a task": {201, 409, 422},
    "patch a list": CHANGED - {422},
    "patch a task": CHANGED - {422},
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


class Session:
    """A device's requests, of which some are lost.

    If the session is `alone`, nothing else happens during its steps.
    """

    def __init__(self, device, send, connection, user_id, *, alone):
        self.device, self.send, self.connection = device, send, connection
        self.user_id, self.alone = user_id, alone
        self.done = None
        self.actions = 0
        self.counts = Counter()

    def step(self, lost=LOST):
        """Send the device's request once; the request or its response may be lost."""
        request = self.device.next_request()
        fate = self.device.choose.random()
        if fate < lost / 2:
            self.counts["lost request"] += 1
            return
        before = self.read_state()
        response = self.send(request)
        if response.status == 503:
            self.counts["503"] += 1
            assert self.counts["503"] <= MOST_503, response
            return
        assert response.status in EXPECTED[request.action], (request, response)
        self.check_repeated(request, response, before)
        if fate < lost:
            self.counts["lost response"] += 1
            return
        self.counts[request.action, response.status] += 1
        self.device.receive(response)
        self.done = None
        if self.device.request is None:
            self.actions += 1
            if self.alone and request.action == "sync":
                assert self.device.copy == read_items(self.connection, self.user_id)

    def check_repeated(self, request, response, before):
        """Check the response to a request that has succeeded before, and whose response was lost.

        If nothing has changed since, the response is the same, and takes no revision.
        """
        after = self.read_state()
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
        if request.action.startswith("delete a list"):
            assert response.json == {"tasks": 0}
        else:
            assert response.body == first.body, request

    def read_state(self):
        """Return the owner's revision, and that of the latest removal from the trash."""
        return self.connection.execute(
            "SELECT revision, purged_revision FROM users WHERE id = %s", (self.user_id,)
        ).fetchone() or (0, 0)

    def finish(self):
        """Send the last request until it has a response, then sync."""
        while self.device.request:
            self.step()
        self.device.request = self.device.make_sync()
        while self.device.request:
            self.step()


def read_items(connection, user_id):
    """Return the JSON objects of the live tasks and lists, by id."""
    return {
        kind: {
            item_id: json.loads(text)
            for item_id, text in connection.execute(
                f"SELECT id::text, json FROM {kind}s WHERE user_id = %s AND deleted_at IS NULL",
                (user_id,),
            )
        }
        for kind in ("task", "list")
    }


def assert_valid(items):
    """Check that parents and lists are live, and that no tree is deep or has a cycle."""
    tasks, lists = items["task"], items["list"]
    for task in tasks.values():
        assert task["list_id"] is None or task["list_id"] in lists
        levels, above = 1, task
        while above["parent_id"]:
            assert tasks[above["parent_id"]]["list_id"] == task["list_id"]
            above, levels = tasks[above["parent_id"]], levels + 1
            assert levels <= LEVELS


def send_by(client):
    """Return a function that sends requests by Flask's test client."""

    def send(request):
        answer = client.open(
            request.path, method=request.method, json=request.body, headers=request.fields
        )
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status_code, headers, answer.data)

    return send


def send_over(connection):
    """Return a function that sends requests over one connection, which is kept alive."""

    def send(request):
        body = None if request.body is None else json.dumps(request.body)
        media_type = {} if body is None else {"Content-Type": "application/json"}
        connection.request(request.method, request.path, body, request.fields | media_type)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, headers, answer.read())

    return send


def assert_all_equal(sessions, third, connection, user_id):
    """Sync all devices, and compare their copies with the server's rows; return all counts."""
    # The last request of one device may change the copy of another, which then syncs once more.
    for session in (*sessions, *sessions):
        session.finish()
    third.device.request = third.device.make_sync()
    third.finish()
    first, second = (session.device.copy for session in sessions)
    assert first == second == third.device.copy == read_items(connection, user_id)
    assert_valid(first)
    return sum((session.counts for session in sessions), Counter())


def test_alternating_devices_end_with_the_trees_of_the_server(app, connection, user_id, count):
    steps = count(STEPS, 300)
    choose = random.Random(SEED)
    send = send_by(app.test_client())

    def make_session():
        device = TreeDevice(user_id, choose)
        return Session(device, send, connection, user_id, alone=True)

    sessions = [make_session(), make_session()]
    while working := [each for each in sessions if each.actions < steps]:
        session = choose.choice(working)
        for _ in range(choose.randrange(1, 3)):
            session.step()

    counts = assert_all_equal(sessions, make_session(), connection, user_id)
    assert counts["repeated, not overtaken"] > 0
    assert counts["repeated, overtaken"] > 0
    assert counts["lost request"] > 0
    succeeded = {key[0] for key in counts if isinstance(key, tuple) and key[1] < 300}
    assert succeeded == set(EXPECTED)


@pytest.mark.slow
def test_devices_at_the_same_time_end_with_the_trees_of_the_server(
    database_url, connection, user_id, count
):
    steps = count(STEPS)
    with serving(database_url) as server, ExitStack() as stack:

        def make_session(seed):
            http = HTTPConnection(*server.address, timeout=30)
            stack.callback(http.close)
            observer = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            device = TreeDevice(user_id, random.Random(seed))
            return Session(device, send_over(http), observer, user_id, alone=False)

        def work(session):
            while session.actions < steps:
                session.step()

        sessions = [make_session(SEED), make_session(SEED + 1)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, sessions))

        counts = assert_all_equal(sessions, make_session(SEED + 2), connection, user_id)
    assert counts["repeated, not overtaken"] > 0
    assert counts["move a task", 200] > 0
