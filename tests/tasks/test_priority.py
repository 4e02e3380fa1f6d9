"""The priority of a task: its values, its default, and lists by priority."""

import re
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode

import orjson
import pytest

from tests.support.api import next_url, pages

PRIORITIES = ["none", "low", "medium", "high"]
UNKNOWN_WORD = "Must be one or more of none, low, medium, high, separated by commas."

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]


UNKNOWN = ["urgent", 4, "High", "low,high", "", " high", True, ["high"]]
NULL = "Field may not be null."


@pytest.mark.parametrize(
    ("method", "value", "detail"),
    [
        *(
            (method, value, "Must be none, low, medium or high.")
            for method in ("POST", "PUT", "PATCH")
            for value in UNKNOWN
        ),
        ("POST", None, NULL),
        ("PUT", None, NULL),
    ],
)
def test_invalid_priority_is_refused(client, make_task, tasks_url, method, value, detail):
    task = make_task(priority="low")

    response = client.open(
        tasks_url if method == "POST" else task.url,
        method=method,
        json={"title": "Buy oats", "priority": value},
    )

    assert response.status_code == 422
    assert response.json["errors"] == [{"pointer": "/priority", "detail": detail}]
    assert client.get(tasks_url).json == [task]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "", {"title": "Buy oats"}),
        ("PATCH", "", {"title": "Buy oats"}),
        ("PATCH", "/complete", None),
    ],
)
def test_change_without_a_priority_keeps_it(client, make_task, method, path, body):
    task = make_task(priority="high")

    response = client.open(task.url + path, method=method, json=body)

    assert response.status_code == 200
    assert response.json["revision"] > task["revision"]
    assert response.json["priority"] == "high"


def test_null_in_a_patch_sets_the_priority_none(client, make_task):
    task = make_task(priority="high")

    first, second = (client.patch(task.url, json={"priority": None}) for _ in range(2))

    assert first.json["priority"] == "none"
    assert second.json == first.json


@pytest.mark.parametrize("sort", ["priority", "-priority"])
def test_pages_by_priority_continue_between_equal_priorities(client, make_task, tasks_url, sort):
    tasks = [make_task(priority=PRIORITIES[number % 3 + 1]) for number in range(9)]

    listed = list(pages(client, f"{tasks_url}?sort={sort}&limit=5"))

    assert [len(page) for page in listed] == [5, 4]
    assert listed[0] + listed[1] == sorted(
        tasks,
        key=lambda task: (PRIORITIES.index(task["priority"]), task["id"]),
        reverse=sort == "-priority",
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("high", ["high"]),
        ("high,medium", ["medium", "high"]),
        ("medium,high,medium", ["medium", "high"]),
        ("high,medium,low,none", PRIORITIES),
    ],
)
def test_filter_takes_several_priorities(client, make_task, tasks_url, words, expected):
    for priority in PRIORITIES:
        make_task(priority=priority)

    response = client.get(f"{tasks_url}?priority={words}&sort=priority")
    count = client.get(f"{tasks_url}/count?priority={words}")

    assert [task["priority"] for task in response.json] == expected
    assert count.json == {"count": len(expected)}


@pytest.mark.parametrize(
    "words",
    ["urgent", "high,urgent", "High", "", "high,", "high, low", "4", ",".join(["low"] * 60)],
)
@pytest.mark.parametrize("path", ["", "/count"])
def test_unknown_word_in_the_filter_is_refused(client, tasks_url, path, words):
    response = client.get(tasks_url + path, query_string={"priority": words})

    assert response.status_code == 422
    assert response.json["errors"] == [{"parameter": "priority", "detail": UNKNOWN_WORD}]


def test_cursor_is_for_the_priorities_in_any_order(client, make_task, tasks_url):
    for _ in range(2):
        make_task(priority="low")
    next_page = next_url(client.get(f"{tasks_url}?limit=1&priority=low,high"))
    assert "priority=low%2Chigh" in next_page

    in_other_order = client.get(next_page.replace("low%2Chigh", "high%2Clow"))
    others = client.get(next_page.replace("low%2Chigh", "low"))

    assert in_other_order.status_code == 200
    assert in_other_order.json == client.get(next_page).json
    assert [error["parameter"] for error in others.json["errors"]] == ["cursor"]


def test_forged_priority_in_a_cursor_is_refused(client, make_task, tasks_url):
    for _ in range(2):
        make_task()
    next_page = next_url(client.get(f"{tasks_url}?limit=1&sort=priority"))
    original = re.search("cursor=([^&]*)", next_page)[1]
    rank, *others = orjson.loads(urlsafe_b64decode(original + "=="))
    assert rank == 0

    for value in ("none", None, True, 1.0, -1, 5, 2**62, []):
        forged = urlsafe_b64encode(orjson.dumps([value, *others])).decode().rstrip("=")
        response = client.get(next_page.replace(original, forged))
        assert response.status_code == 422, value
        assert [error["parameter"] for error in response.json["errors"]] == ["cursor"]


def test_task_from_a_server_of_the_version_before_has_the_default(
    client, connection, tasks_url, user_id
):
    """The version before, which runs beside this one during an upgrade, names no priority."""
    task_id = str(uuid.uuid4())
    with connection.transaction():
        connection.execute(
            "SELECT set_config('role', 'todo_app', true), set_config('todo.user_id', %s, true)",
            (user_id,),
        )
        connection.execute(
            "INSERT INTO tasks (user_id, id, title, description, completed)"
            " VALUES (%s, %s, 'Buy oats', NULL, false)",
            (user_id, task_id),
        )

    task = client.get(f"{tasks_url}/{task_id}").json
    listed = client.get(f"{tasks_url}?priority=none").json

    assert task["priority"] == "none"
    assert listed == [task]
