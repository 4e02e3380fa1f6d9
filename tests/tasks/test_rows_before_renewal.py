"""Tasks of the version before labels and due dates, until `make migrate` has renewed them.

Their JSON lacks the newest members, and `completed_at` is NULL although they are completed.
"""

import pytest

from tests.support.api import pages
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

FIELDS_BEFORE = ("title", "description", "completed", "priority")
SORTS = [prefix + name for name in TASK.sort_keys for prefix in ("", "-")]

pytestmark = [pytest.mark.pooled, pytest.mark.partitioned]


@pytest.fixture
def tasks(make_task, connection, user_id):
    """Three completed tasks and three open ones, as the version before has left them."""
    tasks = [make_task(title=f"Task {number}", completed=number % 2 == 0) for number in range(6)]
    json = rendered_row(TASK.table, FIELDS_BEFORE, "tasks")
    connection.execute("SET session_replication_role = replica")
    connection.execute(
        f"UPDATE tasks SET completed_at = NULL, position = '', json = {json} WHERE user_id = %s",
        (user_id,),
    )
    connection.execute("RESET session_replication_role")
    return tasks


@pytest.mark.parametrize("sort", SORTS)
def test_pages_of_old_rows_follow_each_sort(client, tasks, tasks_url, sort):
    url = f"{tasks_url}?list_id=inbox&sort={sort}"
    whole = client.get(url).json

    listed = [task for page in pages(client, f"{url}&limit=1") for task in page]

    assert listed == whole
    assert sorted(task["id"] for task in listed) == [task["id"] for task in tasks]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "", {"title": "Changed"}),
        ("PATCH", "", {"due_date": "2026-11-21"}),
        ("PATCH", "", {"completed_at": None, "title": "Changed"}),
        ("PUT", "", {"title": "Changed", "completed": True}),
        ("PUT", "/labels/errand", None),
    ],
)
def test_change_of_an_old_row_keeps_its_time_of_completion(client, tasks, method, path, body):
    done = tasks[0]

    response = client.open(done.url + path, method=method, json=body)

    assert response.status_code == 200
    assert response.json["completed_at"] == done["updated_at"]
    assert response.json["updated_at"] > done["updated_at"]


def test_old_row_that_is_completed_gets_the_time_of_the_change(client, tasks):
    response = client.patch(f"{tasks[1].url}/complete")

    assert response.json["completed_at"] == response.json["updated_at"] > tasks[1]["updated_at"]


@pytest.mark.parametrize(
    "changes",
    [
        {"due_date": "2026-11-21", "due_time": "09:30", "time_zone": "Europe/Berlin"},
        {"due_date": "2026-11-21", "due_time": "09:30"},
        {"labels": ["errand"]},
        {"metadata": {"a": "b"}},
    ],
)
def test_old_row_takes_the_new_members(client, tasks, changes):
    response = client.patch(tasks[1].url, json=changes)

    new = client.post(
        f"/api/{tasks[1]['user_id']}/tasks", json={"title": tasks[1]["title"], **changes}
    ).json
    assert response.status_code == 200
    server_members = ("id", "position", "created_at", "updated_at", "revision")
    assert {**response.json, **dict.fromkeys(server_members)} == {
        **new,
        **dict.fromkeys(server_members),
    }
