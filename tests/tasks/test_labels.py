"""Labels: one label added or removed, the list of labels, the rename, and the filters."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest

from tests.support.api import etag, next_url, pages
from tests.support.locks import wait_for_sessions
from tests.support.postgresql import migrate
from tests.support.unreliable_pool import unreliable_pool
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import LABELS, TASK

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]

# The counter of a user whose revisions are ahead of the clock: each change adds 1 to it.
AHEAD = 2**52

ROWS = f"""
    SELECT labels, label_keys, json, {rendered_row(TASK.table, TASK.field_names, "tasks")}
    FROM tasks WHERE user_id = %s
"""


@pytest.fixture(autouse=True)
def stored_labels_are_consistent(connection, user_id):
    """After each test, the keys belong to the labels, and each stored JSON is the rendered one."""
    yield
    assert_consistent(connection, user_id)


def assert_consistent(connection, user_id):
    for labels, keys, json, rendered in connection.execute(ROWS, (user_id,)):
        assert keys == [label.casefold() for label in labels]
        assert labels == sorted(labels)
        assert len(set(keys)) == len(keys) <= LABELS.maximum
        assert json == rendered


@pytest.fixture
def labels_url(user_id):
    return f"/api/{user_id}/labels"


@pytest.fixture
def rename(client, labels_url):
    """Return a function that renames a label."""

    def send(label, to_label):
        return client.post(f"{labels_url}/rename", json={"from": label, "to": to_label})

    return send


def label_url(task, label):
    return f"{task.url}/labels/{quote(label, safe='')}"


def errors_of(response):
    return response.json["errors"]


# One label of a task.


def test_put_adds_one_label_and_keeps_the_others(client, make_task):
    task = make_task(labels=["shop", "errand"], title="Buy oats")

    response = client.put(label_url(task, "home"))

    assert response.status_code == 200
    assert response.json == task | {
        "labels": ["errand", "home", "shop"],
        "updated_at": response.json["updated_at"],
        "revision": response.json["revision"],
    }
    assert response.json["revision"] > task["revision"]
    assert response.headers["ETag"] == etag(response.json["revision"])
    assert client.get(task.url).json == response.json


def test_delete_removes_one_label_and_keeps_the_others(client, make_task):
    task = make_task(labels=["errand", "home", "shop"])

    response = client.delete(label_url(task, "home"))

    assert response.status_code == 200
    assert response.json == task | {
        "labels": ["errand", "shop"],
        "updated_at": response.json["updated_at"],
        "revision": response.json["revision"],
    }
    assert response.json["revision"] > task["revision"]
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_repeated_request_changes_nothing(client, make_task, method):
    task = make_task(labels=["errand"])
    label = "home" if method == "PUT" else "errand"

    first, second = (client.open(label_url(task, label), method=method) for _ in range(2))

    assert first.status_code == second.status_code == 200
    assert first.json["revision"] > task["revision"]
    assert second.json == first.json


@pytest.mark.parametrize(
    "label",
    [
        "a/b",
        "/a",
        "a/",
        "//",
        "a//b",
        "a%2Fb",
        "100%",
        "a?b#c",
        "a+b c",
        "a;b=c",
        "a\\b",
        "restore",
        "labels/x",
        "Ärger",
        "a\u0308",
        "日本語",
        "\U0001f43b",
        "\u200d",
        "\ufffd",
        "null",
        "{}",
        "x" * 60,
        "\U0001f43b" * 60,
    ],
)
def test_label_in_a_path_is_any_text(client, make_task, label):
    task = make_task(labels=["a", "b", "x"])

    added = client.put(label_url(task, label))
    removed = client.delete(label_url(task, label))

    assert (added.status_code, removed.status_code) == (200, 200)
    assert added.json["labels"] == sorted(["a", "b", "x", label])
    assert removed.json["labels"] == ["a", "b", "x"]


def test_slash_in_a_path_need_not_be_encoded(client, make_task):
    task = make_task()

    response = client.put(f"{task.url}/labels/a/b")

    assert response.json["labels"] == ["a/b"]


@pytest.mark.parametrize("encoded", ["%20home%20", "%E3%80%80home", "home%C2%A0"])
def test_white_space_around_a_label_in_a_path_is_removed(client, make_task, encoded):
    task = make_task()

    added = client.put(f"{task.url}/labels/{encoded}")
    removed = client.delete(f"{task.url}/labels/{encoded}")

    assert (added.json["labels"], removed.json["labels"]) == (["home"], [])


LENGTH = "Must have 1 to 60 characters."
COMMA = "Must not have a comma."
CONTROL = "Must not have a control character."


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    ("encoded", "detail"),
    [
        ("%20", LENGTH),
        ("%E2%80%A8", LENGTH),
        ("x" * 61, LENGTH),
        ("a,b", COMMA),
        ("a%2Cb", COMMA),
        ("a%0Ab", CONTROL),
        ("%0A", CONTROL),
        ("a%09", CONTROL),
        ("%7F", CONTROL),
        ("%C2%85", CONTROL),
        ("a%00", "The character U+0000 is not allowed."),
    ],
)
def test_invalid_label_in_a_path_is_refused(client, make_task, method, encoded, detail):
    task = make_task(labels=["a"])

    response = client.open(f"{task.url}/labels/{encoded}", method=method)

    assert response.status_code == 422
    assert errors_of(response) == [{"parameter": "label", "detail": detail}]
    assert client.get(task.url).json == task


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("label", [b"\xff", b"a\xc3", b"\xed\xa0\x80"])
def test_label_in_a_path_that_is_no_utf_8_is_refused(client, make_task, method, label):
    """Werkzeug replaces such bytes by U+FFFD, so the test writes what a server passes on."""
    task = make_task(labels=["a", "\ufffd"])
    path = task.url.encode() + b"/labels/" + label

    response = client.open(
        label_url(task, "x"), method=method, environ_overrides={"PATH_INFO": path.decode("latin-1")}
    )

    assert response.status_code == 422
    assert errors_of(response) == [{"parameter": "label", "detail": "Must be UTF-8."}]
    assert client.get(task.url).json == task


@pytest.mark.parametrize(
    ("stored", "sent"), [("errand", "Errand"), ("Straße", "STRASSE"), ("ΟΔΟΣ", "οδος")]
)
def test_label_that_differs_only_in_case_is_refused(client, make_task, stored, sent):
    task = make_task(labels=["a", stored])

    response = client.put(label_url(task, sent))

    assert response.status_code == 422
    assert errors_of(response) == [
        {
            "parameter": "label",
            "detail": f"The task has the label {stored}, which differs only in case.",
        }
    ]
    assert client.get(task.url).json == task


def test_delete_compares_labels_exactly(client, make_task):
    task = make_task(labels=["errand"])

    response = client.delete(label_url(task, "Errand"))

    assert (response.status_code, response.json) == (200, task)


def test_twenty_first_label_is_refused(client, make_task):
    task = make_task(labels=[f"label {number}" for number in range(LABELS.maximum)])

    response = client.put(label_url(task, "one more"))
    repeated = client.put(label_url(task, "label 3"))

    assert response.status_code == 422
    assert errors_of(response) == [
        {"parameter": "label", "detail": "The task has 20 labels, which is the maximum."}
    ]
    assert (repeated.status_code, repeated.json) == (200, task)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_label_of_a_missing_task_is_404(client, make_task, tasks_url, connection, method):
    deleted, foreign_owner = make_task(labels=["errand"]), uuid.uuid4()
    task = make_task(labels=["errand"])
    client.delete(deleted.url)
    urls = [
        f"{tasks_url}/{uuid.uuid4()}",
        deleted.url,
        task.url.replace(task["user_id"], str(foreign_owner)),
    ]

    responses = [client.open(f"{url}/labels/errand", method=method) for url in urls]

    assert [response.status_code for response in responses] == [404, 404, 404]
    assert client.get(task.url).json == task
    users = connection.execute("SELECT FROM users WHERE id = %s", (foreign_owner,))
    assert users.fetchone() is None


@pytest.mark.parametrize(("method", "label"), [("PUT", "home"), ("DELETE", "errand")])
def test_precondition_of_a_label(client, make_task, method, label):
    task = make_task(labels=["errand"])
    url = label_url(task, label)

    stale = client.open(url, method=method, headers={"If-Match": etag(1)})
    none = client.open(url, method=method, headers={"If-None-Match": task.etag})
    fresh = client.open(url, method=method, headers={"If-Match": task.etag})
    repeated = client.open(url, method=method, headers={"If-Match": task.etag})
    never = client.open(url, method=method, headers={"If-None-Match": "*"})

    for refused in (stale, none):
        assert refused.status_code == 412
        assert refused.json["current"] == task
        assert refused.headers["ETag"] == task.etag
    assert fresh.status_code == 200
    assert fresh.json["revision"] > task["revision"]
    assert (repeated.status_code, repeated.json) == (200, fresh.json)
    assert (never.status_code, never.json["current"]) == (412, fresh.json)


def test_label_in_another_case_with_a_stale_revision_is_412(client, make_task):
    task = make_task(labels=["errand"])

    response = client.put(label_url(task, "Errand"), headers={"If-Match": etag(1)})

    assert (response.status_code, response.json["current"]) == (412, task)


@pytest.fixture
def at_once(app, database_url, connection):
    """Return a function that sends requests which wait for a task's lock until all have begun."""

    def send(task, *requests):
        with ThreadPoolExecutor(len(requests)) as threads:
            with connection.transaction():
                connection.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
                pending = [
                    threads.submit(app.test_client().open, url, method=method)
                    for method, url in requests
                ]
                wait_for_sessions(database_url, lambda: len(requests))
            return [future.result(timeout=30) for future in pending]

    return send


def test_labels_that_two_devices_add_at_once_both_stay(client, make_task, at_once):
    task = make_task(labels=["shop"])

    responses = at_once(task, ("PUT", label_url(task, "errand")), ("PUT", label_url(task, "home")))

    assert [response.status_code for response in responses] == [200, 200]
    assert client.get(task.url).json["labels"] == ["errand", "home", "shop"]


def test_label_that_is_added_while_another_is_removed_stays(client, make_task, at_once):
    task = make_task(labels=["shop"])

    responses = at_once(
        task, ("PUT", label_url(task, "errand")), ("DELETE", label_url(task, "shop"))
    )

    assert [response.status_code for response in responses] == [200, 200]
    assert client.get(task.url).json["labels"] == ["errand"]


def test_one_of_two_cases_of_a_label_that_are_added_at_once_is_refused(client, make_task, at_once):
    task = make_task()
    labels = ["errand", "Errand"]

    responses = at_once(task, *(("PUT", label_url(task, label)) for label in labels))

    assert sorted(response.status_code for response in responses) == [200, 422]
    (added,) = (
        label
        for label, response in zip(labels, responses, strict=True)
        if response.status_code == 200
    )
    assert client.get(task.url).json["labels"] == [added]


def test_same_label_that_two_devices_add_at_once_is_one_change(client, make_task, at_once):
    task = make_task()
    request = ("PUT", label_url(task, "errand"))

    first, second = at_once(task, request, request)

    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json == second.json == client.get(task.url).json


def test_twentieth_label_is_added_once(client, make_task, at_once):
    task = make_task(labels=[f"label {number}" for number in range(LABELS.maximum - 1)])

    responses = at_once(task, ("PUT", label_url(task, "a")), ("PUT", label_url(task, "b")))

    assert sorted(response.status_code for response in responses) == [200, 422]
    assert len(client.get(task.url).json["labels"]) == LABELS.maximum


def test_repeated_creation_may_have_its_labels_and_metadata_in_another_order(client, tasks_url):
    task_id = str(uuid.uuid4())
    body = {
        "id": task_id,
        "title": "Buy oats",
        "labels": ["b", "a"],
        "metadata": {"z": "", "k": ""},
    }
    first = client.post(tasks_url, json=body)
    other_order = {"labels": ["a", " b "], "metadata": {"k": "", "z": ""}}

    again = client.post(tasks_url, json=body | other_order)
    other_case = client.post(tasks_url, json=body | {"labels": ["A", "b"]})

    assert (first.status_code, again.status_code, again.data) == (201, 201, first.data)
    assert other_case.status_code == 409


# The list of labels.


def test_labels_are_counted_and_sorted_by_code_point(client, make_task, labels_url):
    for labels in (["b", "a", "Z"], ["a", "ä", "\U0001f43b"], ["a", "\uffff", "B"], []):
        make_task(labels=labels)

    response = client.get(labels_url)

    assert response.status_code == 200
    assert "Link" not in response.headers
    assert response.json == [
        {"name": "B", "tasks": 1},
        {"name": "Z", "tasks": 1},
        {"name": "a", "tasks": 3},
        {"name": "b", "tasks": 1},
        {"name": "ä", "tasks": 1},
        {"name": "\uffff", "tasks": 1},
        {"name": "\U0001f43b", "tasks": 1},
    ]


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_pages_of_labels_follow_the_link(client, make_task, labels_url, limit):
    names = sorted(["B", "a", "a/b", "a&b=c", "ä", "\U0001f43b", "日"])
    make_task(labels=names)
    make_task(labels=names[2:4])

    listed = list(pages(client, f"{labels_url}?limit={limit}"))

    assert [len(page) for page in listed[:-1]] == [limit] * (len(listed) - 1)
    assert list(chain(*listed)) == [
        {"name": name, "tasks": 2 if name in names[2:4] else 1} for name in names
    ]


def test_labels_in_the_trash_and_of_other_users_do_not_count(client, make_task, labels_url):
    live, deleted = make_task(labels=["a", "b"]), make_task(labels=["a", "c"])
    other_url = f"/api/{uuid.uuid4()}"
    client.post(f"{other_url}/tasks", json={"title": "Buy oats", "labels": ["a", "d"]})
    client.delete(deleted.url)

    while_deleted = client.get(labels_url)
    client.post(f"{deleted.url}/restore")
    client.delete(live.url)
    restored = client.get(labels_url)

    assert while_deleted.json == [{"name": "a", "tasks": 1}, {"name": "b", "tasks": 1}]
    assert restored.json == [{"name": "a", "tasks": 1}, {"name": "c", "tasks": 1}]
    assert client.get(f"{other_url}/labels").json == [
        {"name": "a", "tasks": 1},
        {"name": "d", "tasks": 1},
    ]


def test_user_without_tasks_has_no_labels(client, labels_url):
    response = client.get(labels_url)

    assert (response.status_code, response.json) == (200, [])


@pytest.mark.parametrize("query", ["", "?limit=1"])
def test_labels_have_an_etag_until_the_next_change(client, make_task, labels_url, query):
    task = make_task(labels=["a", "b"])
    first = client.get(labels_url + query)
    headers = {"If-None-Match": first.headers["ETag"]}

    unchanged = client.get(labels_url + query, headers=headers)
    other_query = client.get(f"{labels_url}?limit=2", headers=headers)
    client.patch(task.url, json={"labels": ["b"]})
    changed = client.get(labels_url + query, headers=headers)

    assert (unchanged.status_code, unchanged.data) == (304, b"")
    assert unchanged.headers["ETag"] == first.headers["ETag"]
    assert first.headers["Cache-Control"] == "private, no-cache"
    assert other_query.status_code == 200
    assert (changed.status_code, changed.json) == (200, [{"name": "b", "tasks": 1}])


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("limit=0", "limit"), ("limit=201", "limit"), ("cursor=x", "cursor"), ("q=a", "q")],
)
def test_invalid_query_of_labels_is_refused(client, labels_url, query, parameter):
    response = client.get(f"{labels_url}?{query}")

    assert response.status_code == 422
    assert [error["parameter"] for error in errors_of(response)] == [parameter]


def test_cursor_of_labels_is_for_its_user_and_list(client, make_task, labels_url, tasks_url):
    make_task(labels=["a", "b"])
    make_task()
    labels_cursor, tasks_cursor = (
        next_url(client.get(f"{url}?limit=1")).partition("cursor=")[2]
        for url in (labels_url, tasks_url)
    )

    responses = [
        client.get(f"{url}?limit=1&cursor={cursor}")
        for url, cursor in (
            (f"/api/{uuid.uuid4()}/labels", labels_cursor),
            (labels_url, tasks_cursor),
            (tasks_url, labels_cursor),
        )
    ]

    assert [response.status_code for response in responses] == [422] * 3
    assert {error["parameter"] for each in responses for error in errors_of(each)} == {"cursor"}


# The rename.


def test_rename_replaces_the_label_in_all_tasks_with_one_revision(
    client, make_task, tasks_url, labels_url, rename
):
    renamed = [make_task(labels=labels) for labels in (["errand"], ["a", "errand", "z"])]
    other = make_task(labels=["Errand", "errands"])

    response = rename("errand", "shop")

    tasks = {task["id"]: task for task in client.get(tasks_url).json}
    assert (response.status_code, response.json) == (200, {"tasks": 2})
    assert [tasks[task["id"]]["labels"] for task in renamed] == [["shop"], ["a", "shop", "z"]]
    assert tasks[other["id"]] == other
    (revision,) = {tasks[task["id"]]["revision"] for task in renamed}
    assert revision > other["revision"]
    assert [label["name"] for label in client.get(labels_url).json] == [
        *("Errand", "a", "errands", "shop", "z")
    ]


@pytest.mark.parametrize(
    ("labels", "label", "to_label", "expected"),
    [
        (["a", "errand", "shop"], "errand", "shop", ["a", "shop"]),
        (["errand"], "errand", "Errand", ["Errand"]),
        (["Shop", "errand"], "errand", "shop", ["shop"]),
        (["SHOP", "a", "errand"], "errand", "Shop", ["Shop", "a"]),
        (["STRASSE", "x"], "x", "Straße", ["Straße"]),
        (["a", "m", "z"], "m", "\U0001f43b", ["a", "z", "\U0001f43b"]),
        (["a", "m", "z"], "m", None, ["a", "z"]),
        (["errand"], "errand", None, []),
        (["a/b", "x"], "a/b", "c/d", ["c/d", "x"]),
        (["a"], " a ", " b ", ["b"]),
    ],
)
def test_rename_of_a_label(client, make_task, rename, labels, label, to_label, expected):
    task = make_task(labels=labels)

    response = rename(label, to_label)

    assert (response.status_code, response.json) == (200, {"tasks": 1})
    assert client.get(task.url).json["labels"] == expected


def test_rename_in_a_task_with_twenty_labels(client, make_task, rename):
    labels = [f"label {number:02}" for number in range(LABELS.maximum)]
    task = make_task(labels=labels)

    response = rename("label 07", "another")

    assert (response.status_code, response.json) == (200, {"tasks": 1})
    assert client.get(task.url).json["labels"] == ["another", *labels[:7], *labels[8:]]


@pytest.mark.parametrize("to_label", ["shop", None])
def test_repeated_rename_changes_nothing(client, make_task, rename, user_id, to_label):
    make_task(labels=["errand"])
    rename("errand", to_label)
    before = client.get(f"/api/{user_id}").json["revision"]

    response = rename("errand", to_label)

    assert (response.status_code, response.json) == (200, {"tasks": 0})
    assert client.get(f"/api/{user_id}").json["revision"] == before


def test_rename_to_the_same_label_changes_nothing(client, make_task, rename):
    task = make_task(labels=["errand"])

    response = rename("errand", "errand")

    assert (response.status_code, response.json) == (200, {"tasks": 0})
    assert client.get(task.url).json == task


def test_rename_changes_neither_the_trash_nor_tasks_of_others(
    client, make_task, rename, connection
):
    deleted = make_task(labels=["errand"])
    client.delete(deleted.url)
    other = client.post(
        f"/api/{uuid.uuid4()}/tasks", json={"title": "Buy oats", "labels": ["errand"]}
    ).json

    response = rename("errand", "shop")

    restored = client.post(f"{deleted.url}/restore")
    assert (response.status_code, response.json) == (200, {"tasks": 0})
    assert restored.json["labels"] == ["errand"]
    assert client.get(f"/api/{other['user_id']}/tasks").json == [other]
    assert_consistent(connection, other["user_id"])


def test_rename_for_an_unknown_user_creates_no_row(rename, connection, user_id):
    response = rename("errand", "shop")

    users = connection.execute("SELECT FROM users WHERE id = %s", (user_id,))
    assert (response.status_code, response.json) == (200, {"tasks": 0})
    assert users.fetchone() is None


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({"from": "a"}, "/to", "Missing data for required field."),
        ({"to": "a"}, "/from", "Missing data for required field."),
        ({"from": None, "to": "a"}, "/from", "Field may not be null."),
        ({"from": "a,b", "to": "a"}, "/from", COMMA),
        ({"from": "a", "to": "b,c"}, "/to", COMMA),
        ({"from": "a", "to": ""}, "/to", LENGTH),
        ({"from": "a", "to": "x" * 61}, "/to", LENGTH),
        ({"from": "a", "to": "b\u0007"}, "/to", CONTROL),
        ({"from": "a", "to": ["b"]}, "/to", "Not a valid string."),
        ({"from": "a", "to": "b", "case": 1}, "/case", "Unknown field."),
    ],
)
def test_invalid_rename_is_refused(client, make_task, labels_url, body, pointer, detail):
    task = make_task(labels=["a"])

    response = client.post(f"{labels_url}/rename", json=body)

    assert response.status_code == 422
    assert errors_of(response) == [{"pointer": pointer, "detail": detail}]
    assert client.get(task.url).json == task


def test_rename_reaches_a_label_that_is_added_while_it_waits(
    client, make_task, rename, connection, database_url
):
    """The rename waits for one task, and finds the labels that another request has written."""
    task = make_task(labels=["errand"])

    with ThreadPoolExecutor(1) as threads:
        with connection.transaction():
            connection.execute(
                "UPDATE tasks SET labels = '{errand,new}', label_keys = '{errand,new}'"
                " WHERE id = %s",
                (task["id"],),
            )
            pending = threads.submit(rename, "errand", "shop")
            wait_for_sessions(database_url, lambda: 1)
        response = pending.result(timeout=30)

    assert (response.status_code, response.json) == (200, {"tasks": 1})
    assert client.get(task.url).json["labels"] == ["new", "shop"]


@pytest.mark.parametrize(
    "change", ["labels = '{a}', label_keys = '{a}'", "deleted_at = now()"], ids=["label", "trash"]
)
def test_rename_skips_a_task_that_loses_the_label_while_it_waits(
    make_task, rename, connection, database_url, change
):
    task = make_task(labels=["errand"])

    with ThreadPoolExecutor(1) as threads:
        with connection.transaction():
            connection.execute(f"UPDATE tasks SET {change} WHERE id = %s", (task["id"],))
            pending = threads.submit(rename, "errand", "shop")
            wait_for_sessions(database_url, lambda: 1)
        response = pending.result(timeout=30)

    assert (response.status_code, response.json) == (200, {"tasks": 0})


# Lost connections.


@pytest.fixture
def unreliable(shared_app, make_settings):
    """A client, and a function that loses its next transaction, or the response to it."""
    app = shared_app()

    def lose(moment: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        app.services.pool.next_loss = (moment, meanwhile)

    with unreliable_pool(app, make_settings()):
        yield app.test_client(), lose


@pytest.mark.parametrize("moment", ["request", "response"])
@pytest.mark.parametrize("to_label", ["shop", None])
def test_rename_with_a_lost_connection_is_made_once(
    client, make_task, connection, user_id, labels_url, unreliable, moment, to_label
):
    tasks = [make_task(labels=["a", "errand"]) for _ in range(3)]
    connection.execute("UPDATE users SET revision = %s WHERE id = %s", (AHEAD, user_id))
    sender, lose = unreliable
    lose(moment)

    response = sender.post(f"{labels_url}/rename", json={"from": "errand", "to": to_label})

    assert (response.status_code, response.json) == (200, {"tasks": 3})
    changed = [client.get(task.url).json for task in tasks]
    assert {task["revision"] for task in changed} == {AHEAD + 1}
    assert {tuple(task["labels"]) for task in changed} == {("a", "shop") if to_label else ("a",)}


@pytest.mark.parametrize("moment", ["request", "response"])
@pytest.mark.parametrize(("method", "label"), [("PUT", "home"), ("DELETE", "errand")])
@pytest.mark.parametrize("is_conditional", [True, False])
def test_label_with_a_lost_connection_is_changed_once(
    make_task, connection, user_id, unreliable, moment, method, label, is_conditional
):
    task = make_task(labels=["errand"])
    # The change of the setup is clearly older than the request.
    connection.execute("SELECT pg_sleep(0.15)")
    connection.execute("UPDATE users SET revision = %s WHERE id = %s", (AHEAD, user_id))
    sender, lose = unreliable
    lose(moment)

    response = sender.open(
        label_url(task, label),
        method=method,
        headers={"If-Match": task.etag} if is_conditional else {},
    )

    assert response.status_code == 200
    assert response.json["revision"] == AHEAD + 1
    assert sender.get(task.url).json == response.json


def test_lost_label_is_not_added_again_after_another_device_removed_it(
    client, make_task, connection, unreliable
):
    task = make_task(labels=["errand"])
    connection.execute("SELECT pg_sleep(0.15)")
    sender, lose = unreliable
    lose("response", lambda: client.delete(label_url(task, "home")))

    response = sender.put(label_url(task, "home"))

    assert response.status_code == 503
    assert client.get(task.url).json["labels"] == ["errand"]


# Many clients at once.


CLIENTS = 4
ROUNDS = 3_000  # of each client
WORDS = ["a", "b", "c", "d", "E", "e"]


@pytest.mark.direct
def test_concurrent_renames_and_changes_have_no_deadlock(new_database, make_app, count):
    """The statistics of PostgreSQL are complete when the connections of the application end."""
    url = new_database("deadlocks")
    migrate(url)
    app = make_app(DATABASE_URL=url, WEB_THREADS="16")
    user_url = f"/api/{uuid.uuid4()}"
    seeds = random.Random(14)
    body = {"title": "Buy oats", "labels": WORDS[:4]}
    tasks = [app.test_client().post(f"{user_url}/tasks", json=body).json for _ in range(12)]

    def send(seed: int) -> Counter[tuple[str, int]]:
        choose, client, statuses = random.Random(seed), app.test_client(), Counter()
        for _ in range(count(ROUNDS)):
            task_url = f"{user_url}/tasks/{choose.choice(tasks)['id']}"
            word, other = choose.sample(WORDS, 2)
            name, method, url, json = choose.choice(
                [
                    ("rename", "POST", f"{user_url}/labels/rename", {"from": word, "to": other}),
                    ("rename", "POST", f"{user_url}/labels/rename", {"from": word, "to": other}),
                    ("remove everywhere", "POST", f"{user_url}/labels/rename", REMOVAL),
                    ("patch", "PATCH", task_url, {"labels": sorted({word, "x"})}),
                    ("patch", "PATCH", task_url, {"title": word, "labels": WORDS[:5]}),
                    ("complete", "PATCH", f"{task_url}/complete", {"completed": word < other}),
                    ("add", "PUT", f"{task_url}/labels/{word}", None),
                    ("remove", "DELETE", f"{task_url}/labels/{word}", None),
                    ("list", "GET", f"{user_url}/labels", None),
                ]
            )
            response = client.open(url, method=method, json=json)
            statuses[name, response.status_code] += 1
        return statuses

    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = sum(threads.map(send, [seeds.random() for _ in range(CLIENTS)]), Counter())
    app.services.pool.close()

    with psycopg.connect(url, autocommit=True) as observer:
        wait_until_alone(observer)
        deadlocks = observer.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert_consistent(observer, user_url.removeprefix("/api/"))
    retries = app.services.metrics.registry.get_sample_value(
        "todo_database_retries_total", {"reason": "rolled_back"}
    )
    assert {status for _, status in statuses} <= {200, 422}
    assert {name for name, status in statuses if status == 422} <= {"add"}
    assert min(statuses[name, 200] for name in ("rename", "patch", "complete", "add")) > 0
    assert deadlocks == (0,)
    assert retries == 0


REMOVAL = {"from": "x", "to": None}


def wait_until_alone(connection: psycopg.Connection) -> None:
    """Return when the database has no other connection."""
    for _ in range(500):
        others = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
        if others == (0,):
            return
        connection.execute("SELECT pg_sleep(0.02)")
    pytest.fail("The application has not closed its connections.")


# The filters.


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("label=a", ["a", "ab", "abc"]),
        ("label=a,b", ["ab", "abc"]),
        ("label=b,a,b", ["ab", "abc"]),
        ("label=a,b,c", ["abc"]),
        ("label=A", ["A"]),
        ("label=a,x", []),
        ("label_any=a", ["a", "ab", "abc"]),
        ("label_any=a,A", ["A", "a", "ab", "abc"]),
        ("label_any=c,x", ["abc"]),
        ("label_any=x,y", []),
        ("label=b&label_any=c,A", ["abc"]),
        ("label=a&completed=true", []),
        ("label=%C3%A4%2Fb", ["ä/b"]),
        ("label=+a+,%20b", ["ab", "abc"]),
    ],
)
def test_filters_by_label(client, make_task, tasks_url, query, expected):
    for title, labels in {
        "a": ["a"],
        "ab": ["a", "b"],
        "abc": ["a", "b", "c"],
        "A": ["A"],
        "ä/b": ["ä/b"],
        "none": [],
    }.items():
        make_task(title=title, labels=labels)

    listed = client.get(f"{tasks_url}?{query}&sort=title")
    counted = client.get(f"{tasks_url}/count?{query}")

    assert [task["title"] for task in listed.json] == expected
    assert counted.json == {"count": len(expected)}


@pytest.mark.parametrize("name", ["label", "label_any"])
def test_filter_takes_twenty_labels(client, make_task, tasks_url, name):
    labels = [f"{number:02}".ljust(60, "x") for number in range(LABELS.maximum)]
    task = make_task(labels=labels)
    make_task()

    response = client.get(tasks_url, query_string={name: ",".join(labels)})
    too_many = client.get(tasks_url, query_string={name: ",".join([*labels, "y"])})

    assert response.json == [task]
    assert too_many.status_code == 422
    assert errors_of(too_many) == [{"parameter": name, "detail": "Must have at most 20 labels."}]


@pytest.mark.parametrize("name", ["label", "label_any"])
@pytest.mark.parametrize(
    ("value", "detail"),
    [("", LENGTH), ("a,", LENGTH), ("a,,b", LENGTH), ("x" * 61, LENGTH), ("a\tb", CONTROL)],
)
def test_invalid_label_in_a_filter_is_refused(client, tasks_url, name, value, detail):
    responses = [
        client.get(tasks_url + path, query_string={name: value}) for path in ("", "/count")
    ]

    for response in responses:
        assert response.status_code == 422
        assert errors_of(response) == [{"parameter": name, "detail": detail}]


def test_pages_of_a_label_repeat_and_omit_nothing(client, make_task, tasks_url):
    tasks = [make_task(labels=["a"] if number % 2 else ["b"]) for number in range(9)]

    listed = list(pages(client, f"{tasks_url}?label_any=a,b&limit=2&sort=created_at"))

    assert list(chain(*listed)) == tasks
    assert all(len(page) == 2 for page, _ in pairwise(listed))
