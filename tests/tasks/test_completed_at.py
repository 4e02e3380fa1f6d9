"""When a task was completed: the server sets it, and a client may send it."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.api import pages

THEN, EARLIER = "2020-02-29T12:00:00.000001Z", "2019-01-01T00:00:00.000000Z"
SAME_AS_THEN = "2020-02-29T13:00:00.000001+01:00"
NOW = "now"  # the time of the change

# Each entry: the sent body, and the value of `completed_at` afterwards.
OF_OPEN_TASKS = [
    ({"completed": True}, NOW),
    ({"completed": True, "completed_at": None}, NOW),
    ({"completed": True, "completed_at": EARLIER}, EARLIER),
    ({"completed": False}, None),
    ({"completed": False, "completed_at": EARLIER}, None),
    ({"completed": False, "completed_at": None}, None),
]
OF_COMPLETED_TASKS = [
    ({"completed": True}, THEN),
    ({"completed": True, "completed_at": None}, THEN),
    ({"completed": True, "completed_at": EARLIER}, EARLIER),
    ({"completed": True, "completed_at": SAME_AS_THEN}, THEN),
    ({"completed_at": EARLIER}, EARLIER),
    ({"completed_at": None}, THEN),
    ({"completed": False}, None),
    ({"completed": False, "completed_at": EARLIER}, None),
    ({"completed": False, "completed_at": None}, None),
]
CHANGES = [
    *((None, body, expected) for body, expected in OF_OPEN_TASKS),
    *((THEN, body, expected) for body, expected in OF_COMPLETED_TASKS),
]


def check_change(client, task, response, expected):
    """Check the state after a change, and that only a change takes a revision."""
    assert response.status_code == 200, response.text
    value = response.json["updated_at"] if expected == NOW else expected
    assert response.json["completed_at"] == value
    assert response.json["completed"] == (value is not None)
    assert (response.json["revision"] > task["revision"]) == (value != task["completed_at"])
    assert client.get(task.url).json == response.json


@pytest.fixture
def task_with(make_task):
    """Return a function that creates an open task, or one completed at this time."""
    return lambda time: make_task(completed=time is not None, completed_at=time)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "complete"])
@pytest.mark.parametrize(("before", "body", "expected"), CHANGES)
def test_change_sets_keeps_or_clears_the_time(client, task_with, method, before, body, expected):
    task = task_with(before)

    if method == "complete":
        response = client.patch(f"{task.url}/complete", json=body)
    else:
        sent = body if method == "PATCH" else {"title": task["title"]} | body
        response = client.open(task.url, method=method, json=sent)

    check_change(client, task, response, expected)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("value", [EARLIER, None])
def test_time_without_completed_is_ignored_while_a_task_is_open(client, task_with, method, value):
    task = task_with(None)
    body = {"title": task["title"], "completed_at": value}

    response = client.open(task.url, method=method, json=body)

    assert (response.status_code, response.json) == (200, task)


@pytest.mark.parametrize(
    ("before", "body", "expected"),
    [
        (None, None, NOW),
        (None, {}, NOW),
        (None, {"completed_at": EARLIER}, EARLIER),
        (None, {"completed_at": None}, NOW),
        (THEN, None, THEN),
        (THEN, {}, THEN),
        (THEN, {"completed_at": EARLIER}, EARLIER),
        (THEN, {"completed_at": None}, THEN),
    ],
)
def test_completion_means_true_if_it_does_not_say_so(client, task_with, before, body, expected):
    task = task_with(before)

    response = client.patch(f"{task.url}/complete", json=body)

    check_change(client, task, response, expected)


@pytest.mark.parametrize(("body", "expected"), OF_OPEN_TASKS)
def test_creation_sets_the_time_as_a_change_does(client, tasks_url, body, expected):
    response = client.post(tasks_url, json={"title": "x"} | body)

    value = response.json["created_at"] if expected == NOW else expected
    assert (response.status_code, response.json["completed_at"]) == (201, value)
    assert response.json["completed"] == (value is not None)


def test_creation_with_a_time_alone_makes_an_open_task(client, tasks_url):
    response = client.post(tasks_url, json={"title": "x", "completed_at": THEN})

    assert response.status_code == 201
    assert (response.json["completed"], response.json["completed_at"]) == (False, None)


def test_task_that_is_completed_again_gets_a_new_time(client, task_with):
    task = task_with(THEN)

    reopened = client.patch(task.url, json={"completed": False})
    completed = client.patch(task.url, json={"completed": True})

    assert reopened.json["completed_at"] is None
    assert completed.json["completed_at"] == completed.json["updated_at"]


def test_other_changes_and_the_trash_keep_the_time(client, task_with):
    task = task_with(THEN)

    changed = client.patch(task.url, json={"title": "y", "priority": "high"})
    deleted = client.delete(task.url)
    restored = client.post(f"{task.url}/restore")

    assert (changed.status_code, deleted.status_code) == (200, 204)
    assert restored.json["completed_at"] == changed.json["completed_at"] == THEN


@pytest.mark.parametrize(
    ("ahead", "status"), [(timedelta(minutes=4), 200), (timedelta(minutes=6), 422)]
)
def test_clocks_of_clients_may_be_five_minutes_ahead(client, task, ahead, status):
    moment = (datetime.now(UTC) + ahead).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    response = client.patch(f"{task.url}/complete", json={"completed_at": moment})

    stored = client.get(task.url).json["completed_at"]
    assert (response.status_code, stored) == (status, moment if status == 200 else None)


@pytest.mark.parametrize("sort", ["completed_at", "-completed_at"])
def test_pages_sort_all_times_that_can_be_stored(client, tasks_url, make_task, sort):
    times = ["0001-01-01T00:00:00.000000Z", "1969-12-31T23:59:59.999999Z", THEN]
    for moment in (*times, None, None):
        make_task(completed=moment is not None, completed_at=moment)

    listed = list(pages(client, f"{tasks_url}?limit=1&sort={sort}"))

    expected = [*times, None, None]
    if sort.startswith("-"):
        expected.reverse()
    assert [task["completed_at"] for (task,) in listed] == expected


def test_lists_filter_by_the_time(client, tasks_url, make_task):
    make_task()
    tasks = {moment: make_task(completed=True, completed_at=moment) for moment in (EARLIER, THEN)}

    after = client.get(f"{tasks_url}?completed_after={EARLIER}").json
    before = client.get(f"{tasks_url}?completed_before={THEN}").json

    assert (after, before) == ([tasks[THEN]], [tasks[EARLIER]])
