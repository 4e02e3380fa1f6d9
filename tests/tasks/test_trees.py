"""Subtasks: where they can be, and what follows if a task is deleted, restored or completed."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.api import etag
from tests.support.locks import wait_for_sessions
from tests.support.trees import (
    Account,
    assert_trees_are_right,
    errors_of,
    pointers_of,
    without_stamps,
)

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

CHILDREN = 500
# The rows that this session has read through indexes.
COUNT_READS = "SELECT sum(idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname LIKE 'tasks%'"
UNKNOWN = {"pointer": "/parent_id", "detail": "Must be the id of a task that is not in the trash."}
UNKNOWN_LIST = {
    "pointer": "/list_id",
    "detail": "Must be the id of a list that is not in the trash.",
}


@pytest.fixture
def account(client, user_id):
    return Account(client, user_id)


@pytest.fixture(autouse=True)
def trees_are_right(connection, user_id):
    yield
    assert_trees_are_right(connection, user_id)


@pytest.fixture
def ids(client, account):
    """Ids that no task or list of the user can refer to."""
    gone, list_gone = account.task("Gone"), account.list("Gone")
    account.delete(gone)
    account.delete(list_gone)
    other = Account(client, str(uuid.uuid4()))
    return {
        "unknown": (str(uuid.uuid4()), str(uuid.uuid4())),
        "deleted": (gone["id"], list_gone["id"]),
        "foreign": (other.task()["id"], other.list()["id"]),
        "highest": ("ffffffff-ffff-ffff-ffff-ffffffffffff",) * 2,
        "lowest": ("00000000-0000-0000-0000-000000000000",) * 2,
    }


KINDS = ("unknown", "deleted", "foreign", "highest", "lowest")


# Lists and parents that a task can refer to.


def test_new_task_is_in_the_inbox_without_a_parent(account):
    task = account.task()

    assert (task["list_id"], task["parent_id"]) == (None, None)


def test_subtask_takes_the_list_of_its_parent(account):
    groceries = account.list()
    parent = account.task(list_id=groceries["id"])

    subtask = account.task("Sub", parent_id=parent["id"])

    assert (subtask["list_id"], subtask["parent_id"]) == (groceries["id"], parent["id"])
    assert account.get(subtask) == subtask


def test_new_subtask_can_name_the_list_of_its_parent(account):
    groceries = account.list()
    parent = account.task(list_id=groceries["id"])

    subtask = account.task("Sub", parent_id=parent["id"], list_id=groceries["id"])

    assert subtask["list_id"] == groceries["id"]


@pytest.mark.parametrize("kind", KINDS)
def test_parent_that_is_not_a_live_task_of_the_user_is_refused(account, ids, kind):
    task, revision = account.task(), account.revision()
    parent = ids[kind][0]

    responses = [
        account.client.post(f"{account.url}/tasks", json={"title": "A", "parent_id": parent}),
        account.patch(task, parent_id=parent),
        account.send("PUT", task, json={"title": "A", "parent_id": parent}),
        account.move(task, parent_id=parent),
    ]

    assert [errors_of(response) for response in responses] == [[UNKNOWN]] * 4
    assert account.get(task) == task
    assert account.revision() == revision


@pytest.mark.parametrize("kind", KINDS)
def test_list_that_is_not_a_live_list_of_the_user_is_refused(account, ids, kind):
    task, revision = account.task(), account.revision()
    list_id = ids[kind][1]

    responses = [
        account.client.post(f"{account.url}/tasks", json={"title": "A", "list_id": list_id}),
        account.patch(task, list_id=list_id),
        account.send("PUT", task, json={"title": "A", "list_id": list_id}),
        account.move(task, list_id=list_id),
    ]

    assert [errors_of(response) for response in responses] == [[UNKNOWN_LIST]] * 4
    assert account.get(task) == task
    assert account.revision() == revision


@pytest.mark.parametrize("value", [1, True, "", "no-uuid", [], {}])
@pytest.mark.parametrize("member", ["list_id", "parent_id"])
def test_value_that_is_no_id_is_refused(account, member, value):
    task = account.task()

    responses = [
        account.client.post(f"{account.url}/tasks", json={"title": "A", member: value}),
        account.patch(task, **{member: value}),
        account.move(task, **{member: value}),
    ]

    assert [pointers_of(response) for response in responses] == [[f"/{member}"]] * 3


def test_task_cannot_be_its_own_parent(account):
    task = account.task()

    responses = [
        account.patch(task, parent_id=task["id"]),
        account.move(task, parent_id=task["id"]),
    ]

    assert [pointers_of(response) for response in responses] == [["/parent_id"]] * 2


@pytest.mark.parametrize("level", [2, 3, 5])
def test_descendant_cannot_be_the_parent(account, level):
    tasks = account.chain(5)
    below = tasks[level - 1]["id"]

    responses = [account.patch(tasks[0], parent_id=below), account.move(tasks[0], parent_id=below)]

    expected = {
        "pointer": "/parent_id",
        "detail": "Must not be the task itself or one of its subtasks.",
    }
    assert [errors_of(response) for response in responses] == [[expected]] * 2


def test_new_task_cannot_be_its_own_parent(account):
    own = str(uuid.uuid4())

    response = account.client.post(
        f"{account.url}/tasks", json={"id": own, "title": "A", "parent_id": own}
    )

    assert pointers_of(response) == ["/parent_id"]


def test_sixth_level_is_refused(account):
    tasks = account.chain(5)
    other = account.task()

    responses = [
        account.client.post(
            f"{account.url}/tasks", json={"title": "A", "parent_id": tasks[4]["id"]}
        ),
        account.patch(other, parent_id=tasks[4]["id"]),
        account.move(other, parent_id=tasks[4]["id"]),
    ]

    assert [pointers_of(response) for response in responses] == [["/parent_id"]] * 3


@pytest.mark.parametrize(("above", "below", "fits"), [(2, 3, True), (2, 4, False), (4, 2, False)])
def test_subtree_moves_only_where_all_its_levels_fit(account, above, below, fits):
    target, moved = account.chain(above)[-1], account.chain(below)

    responses = [
        account.move(moved[0], parent_id=target["id"]),
        account.patch(moved[0], parent_id=target["id"]),
    ]

    if fits:
        assert [response.status_code for response in responses] == [200, 200]
        assert account.get(moved[0])["parent_id"] == target["id"]
    else:
        assert [pointers_of(response) for response in responses] == [["/parent_id"]] * 2
        assert account.get(moved[0]) == moved[0]


def test_tasks_in_the_trash_do_not_count_as_levels(account):
    target, moved = account.chain(2)[-1], account.chain(4)
    account.delete(moved[3])

    response = account.patch(moved[0], parent_id=target["id"])

    assert response.status_code == 200
    assert account.restore(moved[3]).json["parent_id"] is None


def test_task_has_at_most_500_children(account, connection, user_id):
    parent, other = account.task("Parent"), account.task("Other")
    last = account.task("Last", parent_id=parent["id"])
    connection.execute(
        "INSERT INTO tasks (user_id, id, title, parent_id)"
        " SELECT %s, gen_random_uuid(), 'Child', %s FROM generate_series(2, %s)",
        (user_id, parent["id"], CHILDREN),
    )

    responses = [
        account.client.post(f"{account.url}/tasks", json={"title": "A", "parent_id": parent["id"]}),
        account.patch(other, parent_id=parent["id"]),
        account.move(other, parent_id=parent["id"]),
    ]

    assert [(r.status_code, r.json["type"]) for r in responses] == [(409, "/problems/quota")] * 3
    assert account.patch(last, parent_id=parent["id"], title="Stays").status_code == 200
    assert account.move(last, parent_id=parent["id"], after=None).status_code == 200
    account.delete(last)
    assert account.patch(other, parent_id=parent["id"]).status_code == 200
    assert account.restore(last).json["parent_id"] is None


@pytest.mark.parametrize("target", ["inbox", "other"])
def test_subtask_cannot_be_in_another_list_than_its_parent(account, target):
    groceries, other = account.list(), account.list("Other")
    parent = account.task(list_id=groceries["id"])
    subtask = account.task("Sub", parent_id=parent["id"])
    list_id = None if target == "inbox" else other["id"]

    responses = [
        account.client.post(
            f"{account.url}/tasks",
            json={"title": "A", "parent_id": parent["id"], "list_id": list_id},
        ),
        account.patch(subtask, list_id=list_id),
        account.patch(subtask, list_id=list_id, parent_id=parent["id"]),
        account.move(subtask, list_id=list_id),
        account.move(subtask, list_id=list_id, parent_id=parent["id"]),
    ]

    expected = {
        "pointer": "/list_id",
        "detail": "Must be the list of the parent: send parent_id: null, too, to leave it.",
    }
    assert [errors_of(response) for response in responses] == [[expected]] * 5
    assert account.get(subtask) == subtask


@pytest.mark.parametrize("way", ["patch", "move"])
def test_subtask_leaves_its_parent_and_list_in_one_request(account, way):
    groceries, other = account.list(), account.list("Other")
    tasks = account.chain(3, list_id=groceries["id"])

    response = getattr(account, way)(tasks[1], list_id=other["id"], parent_id=None)

    assert response.status_code == 200
    assert (response.json["list_id"], response.json["parent_id"]) == (other["id"], None)
    assert account.get(tasks[2])["list_id"] == other["id"]
    assert account.get(tasks[0]) == tasks[0]


@pytest.mark.parametrize("way", ["patch", "move"])
def test_subtask_without_a_parent_stays_in_its_list(account, way):
    groceries = account.list()
    tasks = account.chain(3, list_id=groceries["id"])

    response = getattr(account, way)(tasks[1], parent_id=None)

    assert (response.json["list_id"], response.json["parent_id"]) == (groceries["id"], None)
    assert account.get(tasks[2]) == tasks[2]


@pytest.mark.parametrize("way", ["patch", "move"])
def test_all_descendants_follow_into_another_list(account, way):
    groceries, other = account.list(), account.list("Other")
    tasks = account.chain(4, list_id=groceries["id"])
    account.complete(tasks[3])
    deleted = account.task("Deleted", parent_id=tasks[1]["id"])
    account.delete(deleted)
    before = account.live()

    response = getattr(account, way)(tasks[0], list_id=other["id"])

    after = account.live()
    assert {task["list_id"] for task in after.values()} == {other["id"]}
    assert {task["revision"] for task in after.values()} == {response.json["revision"]}
    changed = {"list_id": other["id"]} | (
        {"position": response.json["position"]} if way == "move" else {}
    )
    assert without_stamps(after) == {
        key: task | {"list_id": other["id"]} | (changed if key == tasks[0]["id"] else {})
        for key, task in without_stamps(before).items()
    }
    assert account.restore(deleted).json["list_id"] == other["id"]


@pytest.mark.parametrize("way", ["patch", "move"])
def test_parent_in_another_list_takes_the_tree_into_its_list(account, way):
    groceries = account.list()
    tasks = account.chain(3)
    parent = account.task("Parent", list_id=groceries["id"])

    response = getattr(account, way)(tasks[0], parent_id=parent["id"])

    assert response.json["list_id"] == groceries["id"]
    assert [account.get(task)["list_id"] for task in tasks] == [groceries["id"]] * 3


def test_null_in_a_patch_leaves_parent_or_list(account):
    groceries = account.list()
    task = account.task(list_id=groceries["id"])

    response = account.patch(task, list_id=None)

    assert (response.status_code, response.json["list_id"]) == (200, None)


def test_whole_subtask_can_be_sent_back(account):
    groceries = account.list()
    subtask = account.chain(2, list_id=groceries["id"])[1]

    responses = [account.send("PUT", subtask, json=subtask), account.patch(subtask, **subtask)]

    assert [(r.status_code, r.json) for r in responses] == [(200, subtask)] * 2


def test_position_in_the_body_of_a_post_is_refused(account):
    response = account.client.post(f"{account.url}/tasks", json={"title": "A", "position": "V"})

    assert errors_of(response) == [{"pointer": "/position", "detail": "Is read-only."}]


def test_patch_ignores_the_position(account):
    task = account.task()

    response = account.patch(task, position="V")

    assert (response.status_code, response.json) == (200, task)


# Archived lists.


def test_archived_list_gets_no_tasks(account):
    archive = account.list()
    inside = account.chain(3, list_id=archive["id"])
    outside = account.chain(2)
    assert account.patch(archive, archived=True).status_code == 200
    new = f"{account.url}/tasks"

    responses = [
        account.client.post(new, json={"title": "A", "list_id": archive["id"]}),
        account.client.post(new, json={"title": "A", "parent_id": inside[0]["id"]}),
        account.patch(outside[0], list_id=archive["id"]),
        account.patch(outside[1], parent_id=inside[0]["id"]),
        account.move(outside[0], list_id=archive["id"]),
        account.move(outside[0], parent_id=inside[0]["id"]),
        account.patch(inside[2], parent_id=inside[0]["id"]),
        account.move(inside[2], parent_id=None),
    ]

    kinds = [(response.status_code, response.json["type"]) for response in responses]
    assert kinds == [(409, "/problems/archived-list")] * 8
    assert [account.get(task) for task in inside + outside] == inside + outside


def test_tasks_of_an_archived_list_can_be_changed_and_leave_it(account):
    archive = account.list()
    tasks = account.chain(2, list_id=archive["id"])
    sibling = account.task("Sibling", list_id=archive["id"])
    account.patch(archive, archived=True)

    responses = [
        account.patch(tasks[0], title="Changed", list_id=archive["id"]),
        account.complete(tasks[0]),
        account.move(sibling, after=None),
        account.move(tasks[0], list_id=None),
    ]

    assert [response.status_code for response in responses] == [200] * 4
    assert account.order(f"list_id={archive['id']}") == [sibling["id"]]
    assert account.get(tasks[1])["list_id"] is None


def test_parent_that_a_task_of_an_archived_list_has_already_can_be_sent(account):
    archive = account.list()
    tasks = account.chain(2, list_id=archive["id"])
    sibling = account.task("Sibling", parent_id=tasks[0]["id"])
    account.patch(archive, archived=True)

    responses = [
        account.patch(tasks[0], title="Changed", parent_id=None),
        account.patch(tasks[1], title="Changed", parent_id=tasks[0]["id"]),
        account.send("PUT", tasks[1], json={"title": "Put", "parent_id": tasks[0]["id"]}),
        account.move(sibling, parent_id=tasks[0]["id"], after=None),
    ]

    assert [response.status_code for response in responses] == [200] * 4
    assert account.order(f"parent_id={tasks[0]['id']}&archived=true") == [
        sibling["id"],
        tasks[1]["id"],
    ]


def test_restore_brings_tasks_back_into_an_archived_list(account):
    archive = account.list()
    tasks = account.chain(3, list_id=archive["id"])
    before = account.live()
    account.delete(tasks[0])
    account.patch(archive, archived=True)

    response = account.restore(tasks[0])

    assert response.status_code == 200
    assert without_stamps(account.live()) == without_stamps(before)


# Delete and restore.


def test_deletion_takes_all_descendants_and_shares_one_revision(account):
    tasks = account.chain(5)
    sibling = account.task("Sibling", parent_id=tasks[0]["id"])
    before = account.live()

    response = account.delete(tasks[1])

    assert response.status_code == 204
    gone = {task["id"] for task in tasks[1:]}
    assert account.trash() == gone
    assert account.live() == {tasks[0]["id"]: before[tasks[0]["id"]], sibling["id"]: sibling}
    changes = account.client.get(f"{account.url}/changes?since=0").json
    assert [change["id"] for change in changes["changes"]] == [tasks[0]["id"], sibling["id"]]


def test_restore_gives_the_tree_back_as_it_was(account):
    groceries = account.list()
    tasks = account.chain(4, list_id=groceries["id"])
    account.complete(tasks[2])
    account.task("Second child", parent_id=tasks[0]["id"])
    before = account.live()
    account.delete(tasks[0])

    response = account.restore(tasks[0])

    after = account.live()
    assert without_stamps(after) == without_stamps(before)
    assert {task["revision"] for task in after.values()} == {response.json["revision"]}
    assert account.trash() == set()


def test_restore_leaves_what_was_in_the_trash_before(account):
    tasks = account.chain(4)
    account.delete(tasks[2])
    account.delete(tasks[0])

    account.restore(tasks[0])

    assert account.live().keys() == {tasks[0]["id"], tasks[1]["id"]}
    assert account.trash() == {tasks[2]["id"], tasks[3]["id"]}
    assert account.restore(tasks[2]).json["parent_id"] == tasks[1]["id"]
    assert account.get(tasks[3])["parent_id"] == tasks[2]["id"]


def test_subtask_restored_alone_leaves_its_deleted_parent(account):
    groceries = account.list()
    tasks = account.chain(4, list_id=groceries["id"])
    account.delete(tasks[0])

    response = account.restore(tasks[2])

    assert (response.json["parent_id"], response.json["list_id"]) == (None, groceries["id"])
    assert account.live().keys() == {tasks[2]["id"], tasks[3]["id"]}
    account.restore(tasks[0])
    assert account.live().keys() == {task["id"] for task in tasks}
    assert account.get(tasks[1])["parent_id"] == tasks[0]["id"]
    assert account.get(tasks[2]) == response.json


def test_restored_task_takes_the_list_of_its_parent(account):
    groceries = account.list()
    tasks = account.chain(3)
    account.delete(tasks[1])
    account.patch(tasks[0], list_id=groceries["id"])

    response = account.restore(tasks[1])

    expected = (groceries["id"], tasks[0]["id"])
    assert (response.json["list_id"], response.json["parent_id"]) == expected
    assert account.get(tasks[2])["list_id"] == groceries["id"]


def test_restored_task_whose_list_is_gone_is_in_the_inbox(account):
    groceries = account.list()
    tasks = account.chain(2, list_id=groceries["id"])
    account.delete(tasks[0])
    account.delete(groceries)

    response = account.restore(tasks[0])

    assert response.json["list_id"] is None
    assert account.get(tasks[1])["list_id"] is None


def test_restored_task_whose_parent_was_purged_has_none(account, connection):
    tasks = account.chain(3)
    account.delete(tasks[0])
    connection.execute("DELETE FROM tasks WHERE id = %s", (tasks[0]["id"],))

    response = account.restore(tasks[1])

    assert response.json["parent_id"] is None
    assert account.get(tasks[2])["parent_id"] == tasks[1]["id"]


def test_restored_list_keeps_the_trees_whose_top_was_purged(account, connection):
    groceries = account.list()
    # From the bottom to the top, so that a subtask is restored before its parent.
    tasks = [account.task(name, list_id=groceries["id"]) for name in ("Leaf", "Twig", "Branch")]
    trunk = account.task("Trunk", list_id=groceries["id"])
    for task, parent in zip(tasks, [*tasks[1:], trunk], strict=True):
        account.patch(task, parent_id=parent["id"])
    account.delete(groceries)
    connection.execute("DELETE FROM tasks WHERE id = %s", (trunk["id"],))

    response = account.restore(groceries)

    assert response.status_code == 200
    parents = [account.get(task)["parent_id"] for task in tasks]
    assert parents == [tasks[1]["id"], tasks[2]["id"], None]


def test_restore_of_a_tree_reads_few_rows_for_each_task(account, connection, user_id):
    parent = account.task("Parent")
    connection.execute(
        "INSERT INTO tasks (user_id, id, title, parent_id)"
        " SELECT %s, gen_random_uuid(), 'Child', %s FROM generate_series(1, %s)",
        (user_id, parent["id"], CHILDREN),
    )
    account.delete(parent)

    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        (before,) = connection.execute(COUNT_READS).fetchone()
        connection.execute("UPDATE tasks SET deleted_at = NULL WHERE user_id = %s", (user_id,))
        (after,) = connection.execute(COUNT_READS).fetchone()

    assert CHILDREN < after - before < 10 * CHILDREN
    assert len(account.live()) == CHILDREN + 1


def test_restored_tree_without_room_for_its_levels_has_no_parent(account):
    moved, target = account.chain(3), account.chain(2)[-1]
    account.delete(moved[1])
    account.move(moved[0], parent_id=target["id"])
    deeper = account.task("Deeper", parent_id=moved[0]["id"])
    account.move(moved[0], parent_id=account.task("Last", parent_id=target["id"])["id"])

    response = account.restore(moved[1])

    assert response.json["parent_id"] is None
    assert account.get(moved[2])["parent_id"] == moved[1]["id"]
    assert account.get(deeper)["parent_id"] == moved[0]["id"]


def test_restore_keeps_the_place_of_a_task_whose_siblings_got_new_positions(account, connection):
    first, second, third = (account.task(name) for name in ("First", "Second", "Third"))
    account.delete(second)
    connection.execute(
        "UPDATE tasks SET position = %s WHERE id IN (%s, %s, %s)",
        ("V", first["id"], second["id"], third["id"]),
    )
    ordered = sorted([first["id"], second["id"], third["id"]])
    moved = first if ordered[0] != first["id"] else third

    assert account.move(moved, after=None).status_code == 200
    assert account.restore(second).status_code == 200

    others = [key for key in ordered if key != moved["id"]]
    assert account.order("list_id=inbox") == [moved["id"], *others]


# Completion.


def test_completion_with_subtasks_completes_the_open_ones(account):
    tasks = account.chain(4)
    done = account.complete(tasks[2]).json
    deleted = account.task("Deleted", parent_id=tasks[0]["id"])
    account.delete(deleted)

    response = account.complete(tasks[0], json={"subtasks": True})

    after = account.live()
    assert (response.status_code, response.json["completed"]) == (200, True)
    assert [after[task["id"]]["completed"] for task in tasks] == [True] * 4
    assert after[done["id"]] == done
    assert after[tasks[3]["id"]]["revision"] == response.json["revision"]
    assert account.restore(deleted).json["completed"] is False


def test_completion_without_subtasks_leaves_them_open(account):
    tasks = account.chain(2)

    account.complete(tasks[0])

    assert account.get(tasks[1]) == tasks[1]


def test_reopening_with_subtasks_is_refused(account):
    tasks = account.chain(2)

    response = account.complete(tasks[0], json={"completed": False, "subtasks": True})

    assert errors_of(response) == [{"pointer": "/subtasks", "detail": "Needs completed: true."}]


def test_completion_of_subtasks_of_a_completed_task(account):
    tasks = account.chain(3)
    done = account.complete(tasks[0]).json

    response = account.complete(tasks[0], json={"subtasks": True})

    assert (response.status_code, response.json) == (200, done)
    assert account.get(tasks[2])["completed"] is True


@pytest.mark.parametrize(
    "body", [{"subtasks": True}, {"subtasks": True, "completed_at": "2026-01-02T03:04:05Z"}]
)
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_failed_precondition_completes_no_subtask_of_a_completed_task(account, header, body):
    tasks = account.chain(3)
    done = account.complete(tasks[0]).json
    tag = etag(tasks[0]["revision"] if header == "If-Match" else done["revision"])

    response = account.complete(tasks[0], json=body, headers={header: tag})

    assert (response.status_code, response.json["current"]) == (412, done)
    assert account.live() == {task["id"]: task for task in (done, tasks[1], tasks[2])}


def test_completion_with_subtasks_can_be_sent_again_with_its_precondition(account):
    tasks = account.chain(3)
    options = {"json": {"subtasks": True}, "headers": {"If-Match": etag(tasks[0]["revision"])}}
    first = account.complete(tasks[0], **options)
    revision = account.revision()

    second = account.complete(tasks[0], **options)

    assert (second.status_code, second.json) == (first.status_code, first.json)
    assert account.revision() == revision


# Requests sent again.


def test_each_write_of_a_tree_can_be_sent_again(account):
    groceries, other = account.list(), account.list("Other")
    tasks = account.chain(4, list_id=groceries["id"])
    own = str(uuid.uuid4())
    writes = [
        lambda: account.client.post(
            f"{account.url}/tasks", json={"id": own, "title": "A", "parent_id": tasks[0]["id"]}
        ),
        lambda: account.patch(tasks[0], list_id=other["id"]),
        lambda: account.patch(tasks[3], parent_id=tasks[0]["id"]),
        lambda: account.move(tasks[2], parent_id=None, list_id=None),
        lambda: account.complete(tasks[0], json={"subtasks": True}),
        lambda: account.delete(tasks[0]),
        lambda: account.restore(tasks[0]),
    ]

    for write in writes:
        first, state = write(), (account.live(), account.trash(), account.revision())
        second = write()

        assert first.status_code in {200, 201, 204}, first.text
        assert (second.status_code, second.data) == (first.status_code, first.data)
        assert (account.live(), account.trash(), account.revision()) == state


# Races.


def test_restore_beside_an_unfinished_deletion_finds_the_live_task_and_does_not_wait(
    app, account, connection, database_url, user_id
):
    tasks = account.chain(3)
    connection.execute("BEGIN")
    connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
    other = Account(app.test_client(), user_id)

    with ThreadPoolExecutor(1) as threads:
        deletion = threads.submit(account.delete, tasks[0])
        wait_for_sessions(database_url, lambda: 1)
        restore = other.restore(tasks[0])
        connection.execute("COMMIT")
        statuses = deletion.result().status_code, restore.status_code

    assert statuses == (204, 200)
    assert restore.json == tasks[0]
    assert account.trash() == {task["id"] for task in tasks}


@pytest.mark.parametrize("way", ["delete", "move", "complete"])
def test_subtask_that_is_created_meanwhile_follows(
    app, account, connection, database_url, user_id, way
):
    groceries = account.list()
    task = account.task()
    connection.execute("BEGIN")
    connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user_id,))
    other = Account(app.test_client(), user_id)
    changes = {
        "delete": lambda: other.delete(task),
        "move": lambda: other.move(task, list_id=groceries["id"]),
        "complete": lambda: other.complete(task, json={"subtasks": True}),
    }

    with ThreadPoolExecutor(2) as threads:
        creation = threads.submit(account.task, "Sub", parent_id=task["id"])
        wait_for_sessions(database_url, lambda: 1)
        change = threads.submit(changes[way])
        wait_for_sessions(database_url, lambda: 2)
        connection.execute("COMMIT")
        subtask, response = creation.result(), change.result()

    assert response.status_code in {200, 204}
    if way == "delete":
        assert account.trash() == {task["id"], subtask["id"]}
    elif way == "move":
        assert account.get(subtask)["list_id"] == groceries["id"]
    else:
        assert account.get(subtask)["completed"] is True
