"""A write changes the members that it names, and nothing else; and it can be sent again."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

import pytest

from tests.support.differences import assert_same_lines
from tests.support.samples import has_samples
from todo_api.tasks.fields import TASK

# Two values of each member. Each value of OTHER can also replace the one of FULL alone.
FULL = {
    "title": "Buy oat milk",
    "description": "Two litres",
    "completed": True,
    "completed_at": "2020-02-29T12:00:00.000001Z",
    "priority": "high",
    "labels": ["errand", "shop"],
    "due_date": "2026-11-21",
    "due_time": "09:30:00",
    "time_zone": "Europe/Berlin",
    "start_date": "2026-11-20",
    "metadata": {"color": "red", "source": "mail"},
}
OTHER = {
    "title": "Buy oats",
    "description": None,
    "completed": False,
    "completed_at": "2021-03-01T00:00:00.000000Z",
    "priority": "none",
    "labels": [],
    "due_date": "2026-11-30",
    "due_time": "23:59:59",
    "time_zone": "Asia/Kathmandu",
    "start_date": None,
    "metadata": {"color": "blue"},
}
KNOWN_TO_OLD_CLIENTS = ("title", "description", "completed")
# Members whose values are ids of other rows have their own tests, in tests/tasks/.
EACH_MEMBER = sorted(field.name for field in TASK.writable_fields if has_samples(field))


def due_at(task):
    """Return when the task is due, as the contract defines it."""
    if None in (task["due_date"], task["due_time"], task["time_zone"]):
        return None
    wall_clock = datetime.combine(
        datetime.fromisoformat(task["due_date"]),
        time.fromisoformat(task["due_time"]),
        ZoneInfo(task["time_zone"]),
    )
    return wall_clock.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def expected_task(task, changes, response, *, is_patch=False):
    """Return the task after these changes, with what follows from them.

    A PATCH merges `metadata`; the response has the new revision and time.
    """
    metadata = changes.get("metadata", task["metadata"])
    expected = task | changes | {"metadata": task["metadata"] | metadata if is_patch else metadata}
    if not expected["completed"]:
        expected["completed_at"] = None
    elif expected["completed_at"] is None:
        expected["completed_at"] = response.json["updated_at"]
    expected["due_at"] = due_at(expected)
    if expected != task:
        assert response.json["revision"] > task["revision"]
        expected |= {name: response.json[name] for name in ("revision", "updated_at")}
    return expected


def test_values_of_this_file_have_every_member():
    for values in (FULL, OTHER):
        assert_same_lines(
            sorted(values), EACH_MEMBER, "Add the member to FULL and OTHER in this file."
        )
    assert all(FULL[name] != OTHER[name] for name in EACH_MEMBER)
    assert all(FULL[name] != TASK.by_name[name].default for name in EACH_MEMBER)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("member", EACH_MEMBER)
def test_write_that_does_not_name_a_member_leaves_it_alone(client, make_task, method, member):
    """All other members change; `completed` stays true, because it decides on `completed_at`."""
    task = make_task(**FULL)
    changes = {**OTHER, "completed": True}
    changes.pop(member)
    sent = {"title": task["title"]} | changes if method == "PUT" else changes

    response = client.open(task.url, method=method, json=sent)

    assert response.status_code == 200, response.text
    assert response.json[member] == task[member]
    assert response.json == expected_task(task, changes, response, is_patch=method == "PATCH")
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("member", EACH_MEMBER)
def test_write_of_one_member_changes_no_other(client, make_task, method, member):
    task = make_task(**FULL)
    changes = {member: OTHER[member]}
    sent = {"title": task["title"]} | changes if method == "PUT" else changes

    response = client.open(task.url, method=method, json=sent)

    assert response.status_code == 200, response.text
    assert response.json == expected_task(task, changes, response, is_patch=method == "PATCH")
    assert response.json != task
    assert client.get(task.url).json == response.json


@pytest.mark.parametrize("seed", range(5))
def test_client_that_knows_three_members_changes_no_other(client, make_task, seed):
    """Such a client sends back only what it knows of the tasks that it has read."""
    choose = random.Random(seed)
    task = make_task(**FULL)

    for _ in range(20):
        known = {name: task[name] for name in KNOWN_TO_OLD_CLIENTS}
        changes = {
            "title": choose.choice([FULL["title"], OTHER["title"]]),
            "description": choose.choice([FULL["description"], OTHER["description"]]),
            "completed": choose.random() < 0.5,
        }
        for name in choose.sample(KNOWN_TO_OLD_CLIENTS, choose.randrange(3)):
            del changes[name]
        method = choose.choice(["PUT", "PATCH", "complete"])
        if method == "complete":
            changes = {"completed": choose.random() < 0.5}
            response = client.patch(f"{task.url}/complete", json=changes)
        else:
            sent = known | changes if method == "PUT" else changes
            response = client.open(task.url, method=method, json=sent)

        assert response.status_code == 200, response.text
        assert response.json == expected_task(task, changes, response)
        task.update(response.json)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("completed", [False, True])
def test_task_that_was_read_is_sent_back_with_completed_flipped_both_ways(
    client, make_task, method, completed
):
    """The body has `completed_at` as it was read: null for true, and a time for false."""
    values = FULL | {
        "completed": completed,
        "completed_at": FULL["completed_at"] if completed else None,
    }
    task = make_task(**values)

    flipped = client.open(
        task.url, method=method, json=client.get(task.url).json | {"completed": not completed}
    )
    back = client.open(
        task.url, method=method, json=client.get(task.url).json | {"completed": completed}
    )

    assert (flipped.status_code, back.status_code) == (200, 200)
    without_time = {**task, "completed_at": None}
    assert flipped.json == expected_task(without_time, {"completed": not completed}, flipped)
    assert back.json == expected_task(
        flipped.json | {"completed_at": None}, {"completed": completed}, back
    )


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("member", EACH_MEMBER)
def test_write_can_be_sent_again_with_the_old_precondition(client, make_task, method, member):
    task = make_task(**FULL)
    body = {member: OTHER[member]} | ({} if method == "PATCH" else {"title": OTHER["title"]})
    headers = {"If-Match": task.etag}

    first = client.open(task.url, method=method, json=body, headers=headers)
    again = client.open(task.url, method=method, json=body, headers=headers)
    other = client.open(task.url, method=method, json=body | {"title": "No"}, headers=headers)

    assert first.json["revision"] > task["revision"]
    assert (again.status_code, again.json) == (200, first.json)
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (other.status_code, other.json["current"]) == (412, first.json)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    "body",
    [
        {"labels": ["shop", " errand "]},
        {"metadata": {"source": "mail", "color": "red"}},
        {"due_time": "09:30"},
        {"completed_at": "2020-02-29T13:00:00.000001+01:00"},
        {"completed": True, "completed_at": None},
        {"completed": True},
        {"due_at": None},
    ],
)
def test_same_value_in_another_spelling_changes_nothing(client, make_task, method, body):
    task = make_task(**FULL)
    sent = body if method == "PATCH" else {"title": task["title"]} | body

    response = client.open(task.url, method=method, json=sent, headers={"If-Match": '"1"'})

    assert (response.status_code, response.json) == (200, task)


@pytest.mark.parametrize(
    "values",
    [
        FULL,
        {"title": "x", "completed": True},
        {"title": "x", "completed": True, "completed_at": None},
        {"title": "x", "completed": False, "completed_at": FULL["completed_at"]},
        {**FULL, "completed_at": None},
    ],
    ids=["all", "completed", "completed-at-null", "open", "all-without-time"],
)
def test_creation_with_an_id_can_be_sent_again(client, tasks_url, values):
    body = {"id": str(uuid.uuid4()), **values}

    first = client.post(tasks_url, json=body)
    again = client.post(tasks_url, json=body)

    assert first.status_code == again.status_code == 201
    assert again.json == first.json
    assert client.get(tasks_url).json == [first.json]


@pytest.mark.parametrize("member", EACH_MEMBER)
def test_creation_with_an_id_and_another_value_is_a_conflict(client, tasks_url, member):
    body = {"id": str(uuid.uuid4()), **FULL}
    first = client.post(tasks_url, json=body)

    conflict = client.post(tasks_url, json=body | {member: OTHER[member]})

    assert (first.status_code, conflict.status_code) == (201, 409)
    assert client.get(tasks_url).json == [first.json]
