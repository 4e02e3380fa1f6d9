"""Moves of tasks: the order of siblings, and moves into other lists and below other tasks."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.api import etag, next_url
from tests.support.locks import expect_no_deadlock, wait_for_sessions
from tests.support.trees import Account, assert_trees_are_right, errors_of, pointers_of

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

NEIGHBOUR = "Must be the id of another task with the same list and parent."


@pytest.fixture
def account(client, user_id):
    return Account(client, user_id)


@pytest.fixture(autouse=True)
def trees_are_right(connection, user_id):
    yield
    assert_trees_are_right(connection, user_id)


@pytest.fixture
def tasks(account):
    """Five tasks of the Inbox, in the order of their positions."""
    return [account.task(name) for name in ("A", "B", "C", "D", "E")]


def titles(account, query="list_id=inbox&parent_id=none"):
    url = f"{account.url}/tasks?sort=position&{query}"
    return "".join(task["title"] for task in account.client.get(url).json)


# The order of siblings.


def test_new_tasks_are_last(account, tasks):
    assert titles(account) == "ABCDE"
    assert [task["position"] for task in tasks] == sorted(task["position"] for task in tasks)


def test_descending_order_is_the_reverse(account, tasks):
    response = account.client.get(f"{account.url}/tasks?sort=-position&list_id=inbox")

    assert response.json == tasks[::-1]


@pytest.mark.parametrize(
    ("side", "anchor", "expected"),
    [
        ("after", None, "CABDE"),
        ("before", None, "ABDEC"),
        ("after", 0, "ACBDE"),
        ("after", 1, "ABCDE"),
        ("after", 3, "ABDCE"),
        ("after", 4, "ABDEC"),
        ("before", 0, "CABDE"),
        ("before", 1, "ACBDE"),
        ("before", 3, "ABCDE"),
        ("before", 4, "ABDCE"),
    ],
)
def test_task_moves_beside_its_neighbour(account, tasks, side, anchor, expected):
    target = None if anchor is None else tasks[anchor]["id"]
    moved = tasks[2]

    response = account.move(moved, **{side: target})

    assert titles(account) == expected
    others = account.live()
    assert others.pop(moved["id"]) == response.json
    assert others == {task["id"]: task for task in tasks if task is not moved}
    if expected == "ABCDE":
        assert response.json == moved
    else:
        changed = ("position", "revision", "updated_at")
        assert {name: value for name, value in response.json.items() if name not in changed} == {
            name: value for name, value in moved.items() if name not in changed
        }
        assert response.json["revision"] > moved["revision"]
        assert response.headers["ETag"] == etag(response.json["revision"])


@pytest.mark.parametrize("body", [{"json": {}}, {}], ids=["empty", "none"])
def test_move_without_a_place_goes_to_the_end(account, tasks, body):
    first = account.send("POST", tasks[1], "/move", **body)
    second = account.send("POST", tasks[1], "/move", **body)

    assert titles(account) == "ACDEB"
    assert second.json == first.json


def test_each_move_can_be_sent_again_with_its_precondition(account, tasks):
    groceries = account.list()
    parent = account.task("P", list_id=groceries["id"])
    first_child = account.task("X", parent_id=parent["id"])
    targets = [
        {"after": tasks[3]["id"]},
        {"before": tasks[0]["id"]},
        {"after": None},
        {"before": None},
        {"list_id": groceries["id"], "after": None},
        {"list_id": groceries["id"], "before": parent["id"]},
        {"parent_id": parent["id"], "after": first_child["id"]},
        {"parent_id": parent["id"]},
        {"parent_id": None},
        {"parent_id": None, "list_id": None},
        {},
    ]

    for target in targets:
        options = {"json": target, "headers": {"If-Match": etag(account.get(tasks[1])["revision"])}}
        first = account.send("POST", tasks[1], "/move", **options)
        state = account.live(), account.revision()
        second = account.send("POST", tasks[1], "/move", **options)

        assert (first.status_code, second.status_code) == (200, 200), target
        assert second.json == first.json
        assert (account.live(), account.revision()) == state


def test_move_with_a_failed_precondition_changes_nothing(account, tasks):
    account.patch(tasks[1], title="b")
    headers = {"If-Match": etag(tasks[1]["revision"])}

    response = account.send("POST", tasks[1], "/move", json={"after": None}, headers=headers)

    assert (response.status_code, response.json["current"]) == (412, account.get(tasks[1]))
    assert titles(account) == "AbCDE"


def test_trashed_tasks_come_back_to_their_place(account, tasks):
    account.delete(tasks[1])
    account.move(tasks[4], after=tasks[0]["id"])

    account.restore(tasks[1])

    assert sorted(titles(account)) == list("ABCDE")
    assert titles(account).index("A") < titles(account).index("B") < titles(account).index("C")


def test_completed_tasks_keep_their_place_and_can_be_neighbours(account, tasks):
    account.complete(tasks[1])

    account.move(tasks[4], after=tasks[1]["id"])

    assert titles(account) == "ABECD"


def test_move_into_a_list_beside_a_neighbour(account, tasks):
    groceries = account.list()
    there = [account.task(name, list_id=groceries["id"]) for name in ("X", "Y")]

    response = account.move(tasks[0], list_id=groceries["id"], before=there[1]["id"])

    assert response.json["list_id"] == groceries["id"]
    assert titles(account, f"list_id={groceries['id']}") == "XAY"
    assert titles(account) == "BCDE"


def test_move_below_a_task_beside_a_neighbour(account, tasks):
    groceries = account.list()
    parent = account.task("P", list_id=groceries["id"])
    there = [account.task(name, parent_id=parent["id"]) for name in ("X", "Y")]

    response = account.move(tasks[0], parent_id=parent["id"], after=there[0]["id"])

    expected = (groceries["id"], parent["id"])
    assert (response.json["list_id"], response.json["parent_id"]) == expected
    assert titles(account, f"parent_id={parent['id']}") == "XAY"
    assert account.order(f"parent_id={parent['id']}") == [
        there[0]["id"],
        tasks[0]["id"],
        there[1]["id"],
    ]


def test_move_into_another_list_goes_to_its_end(account, tasks):
    groceries = account.list()
    account.task("X", list_id=groceries["id"])

    account.move(tasks[0], list_id=groceries["id"])
    account.move(tasks[1], list_id=groceries["id"])

    assert titles(account, f"list_id={groceries['id']}") == "XAB"


def test_siblings_with_equal_positions_get_new_ones(account, connection, tasks):
    connection.execute(
        "UPDATE tasks SET position = 'V' WHERE user_id = %s AND id <> %s",
        (tasks[0]["user_id"], tasks[0]["id"]),
    )
    others = [task["title"] for task in sorted(tasks[1:], key=lambda task: task["id"])]
    second, third = (next(t for t in tasks if t["title"] == name) for name in others[1:3])

    response = account.move(tasks[0], before=third["id"])

    assert response.status_code == 200
    assert titles(account) == "".join(others[:2]) + "A" + "".join(others[2:])
    live = account.live()
    assert {task["revision"] for task in live.values()} == {response.json["revision"]}
    assert all(len(task["position"]) <= 100 for task in live.values())
    assert live[second["id"]]["position"] < response.json["position"]


def test_new_positions_of_siblings_leave_other_tasks_alone(account, connection, tasks):
    groceries = account.list()
    elsewhere = account.task("X", list_id=groceries["id"])
    subtask = account.task("Y", parent_id=tasks[0]["id"])
    connection.execute(
        "UPDATE tasks SET position = 'V' WHERE id = ANY(%s::uuid[])", ([t["id"] for t in tasks],)
    )
    ordered = sorted(tasks, key=lambda task: task["id"])

    response = account.move(ordered[4], after=ordered[0]["id"])

    assert response.status_code == 200
    assert [account.get(elsewhere), account.get(subtask)] == [elsewhere, subtask]


# Bad input.


def test_failed_precondition_gives_no_sibling_a_new_position(account, connection, tasks):
    connection.execute("UPDATE tasks SET position = 'V' WHERE user_id = %s", (tasks[0]["user_id"],))
    order = account.order("list_id=inbox")
    moved = next(task for task in tasks if task["id"] == order[4])
    before = account.live()

    response = account.send(
        "POST",
        moved,
        "/move",
        json={"after": order[0]},
        headers={"If-Match": etag(moved["revision"])},
    )

    assert (response.status_code, response.json["current"]) == (412, before[moved["id"]])
    assert account.live() == before


def test_neighbour_that_is_not_a_live_sibling_is_refused(account, client, tasks):
    groceries = account.list()
    deleted = account.task("Deleted")
    account.delete(deleted)
    neighbours = {
        "itself": tasks[0],
        "subtask": account.task("X", parent_id=tasks[1]["id"]),
        "in a list": account.task("Y", list_id=groceries["id"]),
        "deleted": deleted,
        "foreign": Account(client, str(uuid.uuid4())).task(),
        "unknown": {"id": str(uuid.uuid4())},
        "a list": groceries,
    }
    before = account.live()

    for side in ("after", "before"):
        for kind, neighbour in neighbours.items():
            response = account.move(tasks[0], **{side: neighbour["id"]})

            assert errors_of(response) == [{"pointer": f"/{side}", "detail": NEIGHBOUR}], kind
    assert account.live() == before


def test_neighbour_must_be_at_the_target(account, tasks):
    groceries = account.list()
    there = account.task("X", list_id=groceries["id"])

    responses = [
        account.move(tasks[0], list_id=groceries["id"], after=tasks[1]["id"]),
        account.move(tasks[0], parent_id=tasks[2]["id"], after=tasks[1]["id"]),
        account.move(tasks[0], parent_id=there["id"], before=there["id"]),
    ]

    assert [pointers_of(r) for r in responses] == [["/after"], ["/after"], ["/before"]]


@pytest.mark.parametrize("other", [None, "B"])
def test_after_and_before_together_are_refused(account, tasks, other):
    anchor = other and tasks[1]["id"]

    response = account.move(tasks[0], after=anchor, before=tasks[2]["id"])

    assert errors_of(response) == [{"pointer": "/before", "detail": "Send either after or before."}]


@pytest.mark.parametrize("member", ["position", "title", "id", "revision"])
def test_other_members_in_a_move_are_refused(account, tasks, member):
    response = account.move(tasks[0], **{member: tasks[1][member]})

    assert pointers_of(response) == [f"/{member}"]


@pytest.mark.parametrize("value", [1, True, "", "first", [], {}])
@pytest.mark.parametrize("side", ["after", "before"])
def test_neighbour_that_is_no_id_is_refused(account, tasks, side, value):
    response = account.move(tasks[0], **{side: value})

    assert pointers_of(response) == [f"/{side}"]


def test_move_of_a_task_that_is_not_live_is_not_found(account, client, tasks):
    account.delete(tasks[0])
    foreign = Account(client, str(uuid.uuid4())).task()

    responses = [
        account.move(task, after=None) for task in (tasks[0], foreign, {"id": str(uuid.uuid4())})
    ]

    assert [response.status_code for response in responses] == [404] * 3


# Lists of tasks by place.


def test_filters_by_list_and_parent(account, tasks):
    groceries, other = account.list(), account.list("Other")
    in_list = account.task("X", list_id=groceries["id"])
    in_other = account.task("Y", list_id=other["id"])
    below = account.task("Z", parent_id=in_list["id"])
    below_inbox = account.task("W", parent_id=tasks[0]["id"])

    def find(query):
        return "".join(sorted(task["title"] for task in account.live(query=query).values()))

    assert find(f"list_id={groceries['id']}") == "XZ"
    assert find(f"list_id={groceries['id'].upper()}") == "XZ"
    assert find(f"list_id={groceries['id']},{other['id']}") == "XYZ"
    assert find(f"list_id=inbox,{other['id']}") == "ABCDEWY"
    assert find("list_id=inbox") == "ABCDEW"
    assert find("list_id=inbox&parent_id=none") == "ABCDE"
    assert find("parent_id=none") == "ABCDEXY"
    assert find(f"parent_id={in_list['id']}") == "Z"
    assert find(f"parent_id={in_list['id']},{tasks[0]['id']}") == "WZ"
    assert find(f"parent_id=none,{tasks[0]['id']}") == "ABCDEWXY"
    assert find(f"list_id={uuid.uuid4()}") == find(f"parent_id={uuid.uuid4()}") == ""
    assert {in_other["id"], below["id"], below_inbox["id"]} <= account.live().keys()


def test_task_whose_id_is_the_nil_uuid_is_a_parent_like_others(account, tasks):
    nil = account.task("X", id=str(uuid.UUID(int=0)))
    below = account.task("Y", parent_id=nil["id"])

    assert account.live(query=f"parent_id={nil['id']}").keys() == {below["id"]}
    without_parent = {nil["id"], *(task["id"] for task in tasks)}
    assert account.live(query="parent_id=none").keys() == without_parent
    both = account.live(query=f"parent_id=none,{nil['id']}").keys()
    assert both == {*without_parent, below["id"]}


@pytest.mark.parametrize("parameter", ["list_id", "parent_id"])
@pytest.mark.parametrize("value", ["", "x", "inbox,", "null", "none,inbox", "1"])
def test_filter_that_has_no_ids_is_refused(account, parameter, value):
    response = account.client.get(f"{account.url}/tasks", query_string={parameter: value})

    assert [error["parameter"] for error in errors_of(response)] == [parameter]


def test_filter_has_at_most_50_ids(account):
    ids = [str(uuid.uuid4()) for _ in range(51)]

    accepted = account.client.get(f"{account.url}/tasks?list_id={','.join(ids[:50])}")
    refused = account.client.get(f"{account.url}/tasks?list_id={','.join(ids)}")

    assert (accepted.status_code, accepted.json) == (200, [])
    assert errors_of(refused) == [{"parameter": "list_id", "detail": "Must have at most 50 ids."}]


def test_tasks_of_archived_lists_are_left_out_unless_asked_for(account, tasks):
    archive = account.list()
    parent = account.task("X", list_id=archive["id"])
    account.task("Y", parent_id=parent["id"])
    account.patch(archive, archived=True)

    def find(query):
        url = f"{account.url}/tasks"
        found = account.client.get(f"{url}?{query}").json
        count = account.client.get(f"{url}/count?{query}").json["count"]
        assert count == len(found)
        return "".join(sorted(task["title"] for task in found))

    assert find("") == "ABCDE"
    assert find("archived=false") == "ABCDE"
    assert find("archived=true") == "ABCDEXY"
    assert find(f"list_id={archive['id']}") == "XY"
    assert find(f"list_id={archive['id']}&archived=false") == "XY"
    assert find(f"list_id=inbox,{archive['id']}") == "ABCDEXY"
    assert find(f"parent_id={parent['id']}") == ""
    assert find(f"parent_id={parent['id']}&archived=true") == "Y"
    assert account.live().keys() > {task["id"] for task in tasks}


def test_tag_of_a_list_changes_if_a_list_is_archived(account):
    archive = account.list()
    account.task("X", list_id=archive["id"])
    first = account.client.get(f"{account.url}/tasks")
    account.patch(archive, archived=True)

    second = account.client.get(
        f"{account.url}/tasks", headers={"If-None-Match": first.headers["ETag"]}
    )

    assert (second.status_code, second.json) == (200, [])


@pytest.mark.parametrize("sort", ["position", "-position"])
@pytest.mark.parametrize("query", ["", "&archived=true", "&completed=false"])
def test_order_by_position_needs_a_list_or_a_parent(account, sort, query):
    response = account.client.get(f"{account.url}/tasks?sort={sort}{query}")

    expected = {"parameter": "sort", "detail": "Needs list_id or parent_id."}
    assert errors_of(response) == [expected]


@pytest.mark.parametrize("sort", ["position", "-position"])
@pytest.mark.parametrize("query", ["list_id=inbox", "parent_id=none"])
def test_pages_in_the_order_of_positions_are_complete(account, connection, tasks, query, sort):
    connection.execute(
        "UPDATE tasks SET position = 'V' WHERE id = ANY(%s::uuid[])",
        ([task["id"] for task in tasks[1:4]],),
    )
    url, seen = f"{account.url}/tasks?limit=2&sort={sort}&{query}", []

    while url:
        response = account.client.get(url)
        seen += [(task["position"], task["id"]) for task in response.json]
        url = next_url(response)

    assert seen == sorted(seen, reverse=sort == "-position")
    assert {key for _, key in seen} == {task["id"] for task in tasks}


@pytest.mark.parametrize("sort", ["position", "-position"])
def test_new_positions_between_two_pages_neither_skip_nor_double_a_task(
    account, connection, tasks, sort
):
    last_page = tasks[3:] if sort == "position" else tasks[:2]
    ends = [task["id"] for task in last_page]
    connection.execute(
        "UPDATE tasks SET position = %s WHERE id = ANY(%s::uuid[])",
        ("zV" if sort == "position" else "0V", ends),
    )
    first = account.client.get(f"{account.url}/tasks?limit=2&sort={sort}&list_id=inbox")

    assert account.move(tasks[2], after=min(ends)).status_code == 200
    second = account.client.get(next_url(first))
    third = account.client.get(next_url(second))

    pages = [[task["id"] for task in response.json] for response in (first, second, third)]
    assert sorted(pages[0]) == sorted({task["id"] for task in tasks} - {tasks[2]["id"], *ends})
    moved = [min(ends), tasks[2]["id"], max(ends)]
    assert pages[1] + pages[2] == (moved if sort == "position" else moved[::-1])


def test_count_by_list(account, tasks):
    groceries, empty, archive = (account.list(name) for name in ("A", "B", "C"))
    account.chain(3, list_id=groceries["id"])
    account.task(list_id=archive["id"])
    account.complete(tasks[0])
    account.delete(tasks[1])
    account.patch(archive, archived=True)

    def count(query):
        response = account.client.get(f"{account.url}/tasks/count?by=list_id{query}")
        assert response.status_code == 200, response.text
        counts = {entry["list_id"]: entry["count"] for entry in response.json["counts"]}
        assert len(counts) == len(response.json["counts"])
        assert response.json["count"] == sum(counts.values())
        return counts

    assert count("") == {None: 4, groceries["id"]: 3}
    assert count("&archived=true") == {None: 4, groceries["id"]: 3, archive["id"]: 1}
    assert count("&completed=true") == {None: 1}
    assert count(f"&list_id={empty['id']}") == {}


def test_count_by_another_member_is_refused(account):
    response = account.client.get(f"{account.url}/tasks/count?by=title")

    assert [error["parameter"] for error in errors_of(response)] == ["by"]


def test_count_of_a_new_user_by_list_is_empty(account):
    response = account.client.get(f"{account.url}/tasks/count?by=list_id")

    assert response.json == {"count": 0, "counts": []}


# Two devices.


def test_crossing_moves_of_two_devices_make_no_cycle(make_app, connection, user_id, count):
    app = make_app(WEB_THREADS="16")
    account = Account(app.test_client(), user_id)
    lists = [account.list(name)["id"] for name in ("A", "B")]
    tasks = [account.task(str(number)) for number in range(8)]

    def device(seed):
        choose, own, statuses = random.Random(seed), Account(app.test_client(), user_id), Counter()
        for _ in range(count(500, least=30)):
            moved, target = choose.sample(tasks, 2)
            place = choose.choice(
                [
                    {"parent_id": target["id"]},
                    {"parent_id": target["id"]},
                    {"parent_id": None},
                    {"parent_id": None, "list_id": choose.choice([None, *lists])},
                    {"after": target["id"]},
                ]
            )
            response = own.move(moved, **place)
            statuses[response.status_code] += 1
            if response.status_code == 200:
                expected = {name: place[name] for name in place if name != "after"}
                assert response.json.items() >= expected.items()
            else:
                assert response.status_code == 422, response.text
        return statuses

    with expect_no_deadlock(connection, app), ThreadPoolExecutor(2) as threads:
        statuses = sum(threads.map(device, range(2)), Counter())

    assert statuses[200] > 20
    assert statuses[422] > 5
    assert_trees_are_right(connection, user_id)


def test_two_crossing_moves_at_the_same_time_make_no_cycle(app, account, user_id, count):
    accounts = [Account(app.test_client(), user_id) for _ in range(2)]
    first, second = account.task("First"), account.task("Second")

    with ThreadPoolExecutor(2) as threads:
        for _ in range(count(500, least=20)):
            moves = [
                threads.submit(accounts[0].move, first, parent_id=second["id"]),
                threads.submit(accounts[1].move, second, parent_id=first["id"]),
            ]
            responses = [move.result() for move in moves]

            assert sorted(response.status_code for response in responses) == [200, 422]
            refused = max(responses, key=lambda response: response.status_code)
            assert pointers_of(refused) == ["/parent_id"]
            for task in (first, second):
                assert account.move(task, parent_id=None).status_code == 200


def test_move_of_a_task_that_is_restored_meanwhile_waits_for_it_before_the_owner(
    app, account, connection, database_url, user_id
):
    """A request that locks all tasks, such as an erasure, then the owner, never deadlocks."""
    account.task("First")
    moved = account.task("Second")
    account.delete(moved)
    other = Account(app.test_client(), user_id)
    lock_owner = "SELECT FROM users WHERE id = %s FOR UPDATE"
    lock_tasks = "SELECT id FROM tasks WHERE user_id = %s ORDER BY id FOR UPDATE"
    has_tasks = threading.Event()
    connection.execute("BEGIN")
    connection.execute(lock_owner, (user_id,))

    def hold_owner() -> None:
        """Keep the owner's row between the restore and the move."""
        with psycopg.connect(database_url) as session:
            session.execute(lock_owner, (user_id,))
            has_tasks.wait(1)
            wait_for_sessions(database_url, lambda: sum(not each.done() for each in started[2:]))

    def lock_all() -> None:
        with psycopg.connect(database_url) as session:
            session.execute("SET deadlock_timeout = '10ms'")
            session.execute(lock_tasks, (user_id,))
            has_tasks.set()
            session.execute(lock_owner, (user_id,))

    started = []
    with ThreadPoolExecutor(4) as threads:
        for number, function in enumerate(
            (
                lambda: account.restore(moved),
                hold_owner,
                lock_all,
                lambda: other.move(moved, after=None),
            ),
            1,
        ):
            started.append(threads.submit(function))
            wait_for_sessions(database_url, lambda number=number: number)
        connection.execute("COMMIT")
        restore, _, _, move = (each.result() for each in started)

    assert (restore.status_code, move.status_code) == (200, 200)
    assert titles(account) == "SecondFirst"
