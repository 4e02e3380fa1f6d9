"""Lists: their members and order, and what follows for tasks if a list is deleted or restored."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.api import etag
from tests.support.locks import expect_no_deadlock, wait_for_sessions
from tests.support.offline_session import send_by
from tests.support.tree_device import TreeDevice
from tests.support.trees import (
    Account,
    assert_trees_are_right,
    errors_of,
    pointers_of,
    without_stamps,
)

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

CLIENTS = 4
NEIGHBOUR = "Must be the id of another list that is not in the trash."


@pytest.fixture
def account(client, user_id):
    return Account(client, user_id)


@pytest.fixture(autouse=True)
def trees_are_right(connection, user_id):
    yield
    assert_trees_are_right(connection, user_id)


@pytest.fixture
def groceries(account):
    return account.list()


# Members.


def test_new_list_has_all_members(account, user_id):
    created = account.list(name="  Groceries ", color="#33AAff", metadata={"source": "mail"})

    stamps = {name: created[name] for name in ("id", "position", "created_at", "revision")}
    assert created == {
        **stamps,
        "user_id": user_id,
        "name": "Groceries",
        "color": "#33aaff",
        "archived": False,
        "metadata": {"source": "mail"},
        "updated_at": created["created_at"],
    }
    assert account.get(created, "lists") == created


def test_list_of_lists_has_the_archived_ones(account, groceries):
    archive = account.list("Archive", archived=True)

    assert account.live("lists") == {groceries["id"]: groceries, archive["id"]: archive}
    only = account.client.get(f"{account.url}/lists?archived=false").json
    assert only == [groceries]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("name", ""),
        ("name", " "),
        ("name", "a" * 121),
        ("name", None),
        ("name", 1),
        ("color", "red"),
        ("color", "#fff"),
        ("color", "#3366fg"),
        ("archived", 1),
        ("archived", "true"),
        ("metadata", {"a": 1}),
        ("tasks", []),
    ],
)
def test_value_that_breaks_a_rule_is_refused(account, groceries, member, value):
    responses = [
        account.client.post(f"{account.url}/lists", json={"name": "A", member: value}),
        account.patch(groceries, **{member: value}),
        account.send("PUT", groceries, json={"name": "A", member: value}),
    ]

    pointers = {pointer.removesuffix("/a") for r in responses for pointer in pointers_of(r)}
    assert pointers == {f"/{member}"}
    assert account.live("lists") == {groceries["id"]: groceries}


@pytest.mark.parametrize("digit", "0f")
def test_id_that_stands_for_another_place_is_refused(account, digit):
    reserved = "-".join(digit * length for length in (8, 4, 4, 4, 12))

    response = account.client.post(f"{account.url}/lists", json={"id": reserved, "name": "A"})

    expected = {"pointer": "/id", "detail": "Must be another id: this one is reserved."}
    assert errors_of(response) == [expected]


def test_position_in_the_body_of_a_post_is_refused(account):
    response = account.client.post(f"{account.url}/lists", json={"name": "A", "position": "V"})

    assert errors_of(response) == [{"pointer": "/position", "detail": "Is read-only."}]


def test_foreign_list_is_not_found(account, client):
    foreign = Account(client, str(uuid.uuid4())).list()

    responses = [
        account.send("GET", foreign),
        account.patch(foreign, name="A"),
        account.send("PUT", foreign, json={"name": "A"}),
        account.delete(foreign),
        account.delete(foreign, "?tasks=inbox"),
        account.restore(foreign),
        account.move(foreign, after=None),
    ]

    assert [response.status_code for response in responses] == [404] * 7


def test_change_of_a_list_changes_no_task(account, groceries):
    task = account.task(list_id=groceries["id"])

    account.patch(groceries, name="Other", color="#000000", archived=True)

    assert account.get(task) == task


# Order.


def test_lists_move_and_stay_in_order(account):
    lists = [account.list(name) for name in "ABCD"]
    ids = [item["id"] for item in lists]
    assert account.order_of_lists() == ids

    moves = [
        ({"after": None}, [2, 0, 1, 3]),
        ({"before": None}, [0, 1, 3, 2]),
        ({"after": ids[0]}, [0, 2, 1, 3]),
        ({"before": ids[0]}, [2, 0, 1, 3]),
        ({}, [0, 1, 3, 2]),
    ]
    for target, expected in moves:
        response = account.move(lists[2], **target)

        assert response.status_code == 200
        assert account.order_of_lists() == [ids[number] for number in expected]
        assert account.move(lists[2], **target).json == response.json
    assert [account.get(item, "lists") for item in lists[:2]] == lists[:2]


def test_neighbour_of_a_list_must_be_another_live_list(account, client, groceries):
    deleted = account.list()
    account.delete(deleted)
    neighbours = [
        groceries["id"],
        deleted["id"],
        Account(client, str(uuid.uuid4())).list()["id"],
        account.task()["id"],
        str(uuid.uuid4()),
    ]

    for side in ("after", "before"):
        for neighbour in neighbours:
            response = account.move(groceries, **{side: neighbour})

            assert errors_of(response) == [{"pointer": f"/{side}", "detail": NEIGHBOUR}]


@pytest.mark.parametrize(
    "body", [{"after": None, "before": None}, {"position": "V"}, {"list_id": None}]
)
def test_body_of_a_move_of_a_list_is_checked(account, groceries, body):
    response = account.move(groceries, **body)

    assert pointers_of(response) == [f"/{list(body)[-1]}"]


def test_lists_with_equal_positions_get_new_ones(account, connection):
    lists = [account.list(name) for name in "ABCD"]
    connection.execute("UPDATE lists SET position = 'V' WHERE user_id = %s", (lists[0]["user_id"],))
    ids = account.order_of_lists()
    moved = next(item for item in lists if item["id"] == ids[3])

    response = account.move(moved, after=ids[0])

    assert response.status_code == 200
    assert account.order_of_lists() == [ids[0], ids[3], ids[1], ids[2]]
    assert account.get(moved, "lists") == response.json


def test_failed_precondition_gives_no_list_a_new_position(account, connection):
    lists = [account.list(name) for name in "ABCD"]
    connection.execute("UPDATE lists SET position = 'V' WHERE user_id = %s", (lists[0]["user_id"],))
    ids, before = account.order_of_lists(), account.live("lists")
    moved = next(item for item in lists if item["id"] == ids[3])

    response = account.send(
        "POST",
        moved,
        "/move",
        json={"after": ids[0]},
        headers={"If-Match": etag(moved["revision"])},
    )

    assert (response.status_code, response.json["current"]) == (412, before[moved["id"]])
    assert account.live("lists") == before


# Deletion and restore.


def test_deletion_takes_the_tasks_and_restore_brings_them_back(account, groceries):
    tasks = account.chain(4, list_id=groceries["id"])
    account.complete(tasks[1])
    other = account.task("Other")
    before, lists = account.live(), account.live("lists")

    deletion = account.delete(groceries)

    assert (deletion.status_code, deletion.json) == (200, {"tasks": 4})
    assert account.live() == {other["id"]: other}
    assert account.trash() == {groceries["id"], *(task["id"] for task in tasks)}
    restore = account.restore(groceries)
    assert (restore.status_code, restore.json["id"]) == (200, groceries["id"])
    assert without_stamps(account.live()) == without_stamps(before)
    assert without_stamps(account.live("lists")) == without_stamps(lists)
    assert account.get(other) == other
    revisions = {account.get(task)["revision"] for task in tasks}
    assert revisions == {restore.json["revision"]}
    assert account.trash() == set()


def test_restore_leaves_the_tasks_that_were_in_the_trash_before(account, groceries):
    tasks = account.chain(3, list_id=groceries["id"])
    alone = account.task("Alone", list_id=groceries["id"])
    account.delete(tasks[1])
    account.delete(alone)

    assert account.delete(groceries).json == {"tasks": 1}
    account.restore(groceries)

    assert account.live().keys() == {tasks[0]["id"]}
    assert account.trash() == {tasks[1]["id"], tasks[2]["id"], alone["id"]}
    assert account.restore(alone).json["list_id"] == groceries["id"]
    assert account.restore(tasks[1]).json["parent_id"] == tasks[0]["id"]


def test_second_deletion_and_restore_take_only_their_own_tasks(account, groceries):
    first, second = (account.task(name, list_id=groceries["id"]) for name in "AB")
    account.delete(groceries)
    account.restore(groceries)
    account.delete(first)

    assert account.delete(groceries).json == {"tasks": 1}
    account.restore(groceries)

    assert account.live().keys() == {second["id"]}


def test_task_restored_alone_is_in_the_inbox_and_stays_there(account, groceries):
    tasks = account.chain(3, list_id=groceries["id"])
    account.delete(groceries)

    restored = account.restore(tasks[1])

    assert (restored.json["list_id"], restored.json["parent_id"]) == (None, None)
    assert account.get(tasks[2])["list_id"] is None
    account.restore(groceries)
    assert account.get(tasks[1]) == restored.json
    assert account.get(tasks[0])["list_id"] == groceries["id"]


def test_deletion_to_the_inbox_moves_the_trees(account, groceries):
    tasks = account.chain(4, list_id=groceries["id"])
    deleted = account.task("Deleted", list_id=groceries["id"])
    account.delete(deleted)
    before = account.live()

    response = account.delete(groceries, "?tasks=inbox")

    assert (response.status_code, response.json) == (200, {"tasks": 4})
    expected = {key: task | {"list_id": None} for key, task in without_stamps(before).items()}
    assert without_stamps(account.live()) == expected
    assert account.order("list_id=inbox&parent_id=none") == [tasks[0]["id"]]
    account.restore(groceries)
    assert without_stamps(account.live()) == expected
    assert account.restore(deleted).json["list_id"] == groceries["id"]


@pytest.mark.parametrize("query", ["", "?tasks=trash", "?tasks=inbox"])
def test_deletion_and_restore_can_be_sent_again(account, groceries, query):
    account.chain(2, list_id=groceries["id"])

    first = account.delete(groceries, query)
    state = account.live(), account.trash(), account.revision()
    again = [account.delete(groceries, other) for other in ("", "?tasks=inbox", query)]

    assert (first.status_code, first.json) == (200, {"tasks": 2})
    assert [(r.status_code, r.json) for r in again] == [(200, {"tasks": 0})] * 3
    assert (account.live(), account.trash(), account.revision()) == state
    restored = account.restore(groceries)
    state = account.live(), account.trash(), account.revision()
    assert account.restore(groceries).json == restored.json
    assert (account.live(), account.trash(), account.revision()) == state


@pytest.mark.parametrize("query", ["?tasks=", "?tasks=all", "?task=inbox", "?tasks=Inbox"])
def test_query_of_the_deletion_is_checked(account, groceries, query):
    response = account.delete(groceries, query)

    assert response.status_code == 422
    assert account.get(groceries, "lists") == groceries


@pytest.mark.parametrize("query", ["", "?tasks=inbox"])
def test_deletion_with_a_failed_precondition_changes_no_task(account, groceries, query):
    tasks = account.chain(2, list_id=groceries["id"])
    account.patch(groceries, name="Changed")
    headers = {"If-Match": etag(groceries["revision"])}

    response = account.send("DELETE", groceries, query, headers=headers)

    assert response.status_code == 412
    assert response.json["current"] == account.get(groceries, "lists")
    assert account.live() == {task["id"]: task for task in tasks}


def test_changes_have_the_list_before_its_tasks_at_one_revision(account, groceries):
    account.chain(3, list_id=groceries["id"])
    since = account.client.get(f"{account.url}/changes?since=0").json["next"]

    account.delete(groceries)

    changes = account.client.get(f"{account.url}/changes?since={since}").json["changes"]
    assert Counter(change["type"] for change in changes) == {"list": 1, "task": 3}
    assert len({change["revision"] for change in changes}) == 1
    assert all(change["deleted"] for change in changes)


def test_archived_list_can_be_deleted_and_restored(account, groceries):
    tasks = account.chain(2, list_id=groceries["id"])
    account.patch(groceries, archived=True)
    before = account.live()

    assert account.delete(groceries).json == {"tasks": 2}
    assert account.restore(groceries).json["archived"] is True

    assert without_stamps(account.live()) == without_stamps(before)
    assert account.delete(groceries, "?tasks=inbox").json == {"tasks": 2}
    assert account.live(query="").keys() == {task["id"] for task in tasks}


# Races.


@pytest.mark.parametrize("query", ["", "?tasks=inbox"])
def test_task_that_is_created_during_the_deletion_goes_with_the_list(
    app, account, connection, database_url, user_id, groceries, query
):
    connection.execute("BEGIN")
    connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
    other = Account(app.test_client(), user_id)

    with ThreadPoolExecutor(2) as threads:
        creation = threads.submit(account.task, list_id=groceries["id"])
        wait_for_sessions(database_url, lambda: 1)
        deletion = threads.submit(other.delete, groceries, query)
        wait_for_sessions(database_url, lambda: 2)
        connection.execute("COMMIT")
        task, response = creation.result(), deletion.result()

    assert (response.status_code, response.json) == (200, {"tasks": 1})
    if query:
        assert account.get(task)["list_id"] is None
    else:
        assert account.trash() == {groceries["id"], task["id"]}


def test_task_that_comes_after_the_deletion_is_refused(
    app, account, connection, database_url, user_id, groceries
):
    connection.execute("BEGIN")
    connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
    other = Account(app.test_client(), user_id)

    with ThreadPoolExecutor(2) as threads:
        deletion = threads.submit(account.delete, groceries)
        wait_for_sessions(database_url, lambda: 1)
        creation = threads.submit(
            other.client.post,
            f"{account.url}/tasks",
            json={"title": "A", "list_id": groceries["id"]},
        )
        wait_for_sessions(database_url, lambda: 2)
        connection.execute("COMMIT")
        responses = deletion.result(), creation.result()

    assert [response.status_code for response in responses] == [200, 422]


SECONDS = 60


class Load:
    """A client that changes the tasks and lists of a user, and checks each response.

    `newest` has the newest JSON object of each item that a success has returned.
    """

    def __init__(self, account, seed, lists, tasks):
        self.account, self.choose = account, random.Random(seed)
        self.lists, self.tasks = lists, list(tasks)
        self.newest = {}
        self.statuses = Counter()

    def step(self):
        action = self.choose.choice(
            (
                self.complete,
                self.move,
                self.rename,
                self.delete_list,
                self.restore_list,
                self.delete_task,
                self.restore_task,
                self.create,
                self.reorder,
                self.patch,
                self.move_list,
                *([self.empty_trash] if self.choose.random() < 0.02 else []),
            )
        )
        response = action()
        self.statuses[action.__name__, response.status_code] += 1
        assert response.status_code in {200, 201, 204, 404, 409, 422}, response.text
        if response.status_code in {200, 201} and "revision" in response.json:
            keep_newest(self.newest, response.json)

    def task(self):
        return self.choose.choice(self.tasks)

    def list_(self):
        return self.choose.choice(self.lists)

    def check(self, response, **expected):
        if response.status_code == 200:
            assert response.json.items() >= expected.items()
        return response

    def complete(self):
        completed = self.choose.random() < 0.6
        body = {"completed": completed, "subtasks": completed and self.choose.random() < 0.5}
        return self.check(self.account.complete(self.task(), json=body), completed=completed)

    def move(self):
        parent, task = self.task()["id"], self.task()
        target = self.choose.choice(
            [
                {"parent_id": parent},
                {"parent_id": None, "list_id": self.list_()["id"]},
                {"parent_id": None, "list_id": None, "after": None},
            ]
        )
        expected = {name: value for name, value in target.items() if name != "after"}
        return self.check(self.account.move(task, **target), **expected)

    def reorder(self):
        return self.account.move(self.task(), after=self.task()["id"])

    def move_list(self):
        return self.account.move(self.list_(), after=self.choose.choice([None, self.list_()["id"]]))

    def patch(self):
        list_id = self.choose.choice([None, self.list_()["id"]])
        changes = {"title": f"T{self.choose.random()}", "list_id": list_id}
        return self.check(self.account.patch(self.task(), **changes), **changes)

    def rename(self):
        old, new = self.choose.sample(["red", "green", "blue"], 2)
        url = f"{self.account.url}/labels/rename"
        return self.account.client.post(url, json={"from": old, "to": new})

    def delete_list(self):
        return self.account.delete(self.list_(), self.choose.choice(["", "?tasks=inbox"]))

    def restore_list(self):
        item = self.list_()
        return self.check(self.account.restore(item), id=item["id"], name=item["name"])

    def delete_task(self):
        return self.account.delete(self.task())

    def restore_task(self):
        task = self.task()
        return self.check(self.account.restore(task), id=task["id"])

    def create(self):
        body = {"id": str(uuid.uuid4()), "title": "New", "labels": ["red"]}
        if self.choose.random() < 0.5:
            body["parent_id"] = self.task()["id"]
        response = self.account.client.post(f"{self.account.url}/tasks", json=body)
        if response.status_code == 201:
            assert response.json.items() >= body.items()
            self.tasks.append(response.json)
        return response

    def empty_trash(self):
        return self.account.client.delete(f"{self.account.url}/trash")


def keep_newest(newest, item):
    if item["id"] not in newest or item["revision"] > newest[item["id"]]["revision"]:
        newest[item["id"]] = item


class Follower:
    """A client that follows `/changes`."""

    def __init__(self, client, user_id):
        self.device = TreeDevice(user_id, random.Random(0))
        self.send = send_by(client)

    def sync(self):
        """Read a page of changes, and those that follow it."""
        self.device.request = self.device.make_sync()
        while self.device.request:
            response = self.send(self.device.request)
            assert response.status in {200, 410}, response
            self.device.receive(response)


@pytest.mark.parametrize("is_emptied", [False, True], ids=["kept", "emptied"])
def test_four_clients_of_one_user_never_deadlock_and_lose_nothing(
    make_app, connection, user_id, count, is_emptied
):
    app = make_app(WEB_THREADS="16")
    account = Account(app.test_client(), user_id)
    lists = [account.list(f"List {number}") for number in range(4)]
    tasks = [
        task
        for item in lists
        for _ in range(3)
        for task in account.chain(3, list_id=item["id"], labels=["red"])
    ]
    follower = Follower(app.test_client(), user_id)
    end = time.monotonic() + count(SECONDS, least=2)
    is_over = threading.Event()

    def client(seed):
        load = Load(Account(app.test_client(), user_id), seed, lists, tasks)
        if not is_emptied:
            load.empty_trash = load.complete
        try:
            while time.monotonic() < end and not is_over.is_set():
                load.step()
        finally:
            is_over.set()
        return load

    def follow():
        while not is_over.is_set():
            follower.sync()

    with expect_no_deadlock(connection, app):
        with ThreadPoolExecutor(CLIENTS + 1) as threads:
            following = threads.submit(follow)
            loads = list(threads.map(client, range(CLIENTS)))
            following.result()
        follower.sync()
        live = {"task": account.live(), "list": account.live("lists")}
        trash = account.trash()

    statuses = sum((load.statuses for load in loads), Counter())
    assert statuses.total() > 20, statuses
    created = {task["id"] for load in loads for task in load.tasks}
    kept = live["task"].keys() | (trash - {item["id"] for item in lists})
    assert kept <= created
    assert is_emptied or kept == created
    newest = {}
    for load in loads:
        for item in load.newest.values():
            keep_newest(newest, item)
    for item in (*live["task"].values(), *live["list"].values()):
        answered = newest.get(item["id"], item)
        assert item["revision"] > answered["revision"] or item == answered
    assert follower.device.copy == live
    followed_trash = {item_id for ids in follower.device.trash.values() for item_id in ids}
    assert is_emptied or followed_trash == trash
    assert_trees_are_right(connection, user_id)


def test_removal_of_the_trash_never_deadlocks_with_a_restore(
    make_app, connection, database_url, user_id
):
    app = make_app(WEB_THREADS="16")
    account, other = (Account(app.test_client(), user_id) for _ in range(2))
    groceries = account.list()
    task = account.task(list_id=groceries["id"])
    account.delete(groceries)

    with expect_no_deadlock(connection, app):
        connection.execute("BEGIN")
        connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
        with ThreadPoolExecutor(2) as threads:
            removal = threads.submit(account.client.delete, f"{account.url}/trash")
            wait_for_sessions(database_url, lambda: 1)
            restore = threads.submit(other.restore, task)
            wait_for_sessions(database_url, lambda: 2)
            connection.execute("COMMIT")
            responses = removal.result(), restore.result()
        state = account.live(), account.trash()

    assert [response.status_code for response in responses] == [204, 404]
    assert state == ({}, set())
