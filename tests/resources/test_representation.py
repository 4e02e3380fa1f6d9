"""The stored representation of each row equals the row, rendered anew."""

import json
import uuid

import pytest

from tests.support.api import Device
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

RENDERED = rendered_row(TASK.table, TASK.field_names, "tasks")
TITLES = [
    "Buy oat milk",
    'Quotes "and" \\ slashes / and \b\f\n\r\t',
    "\x01\x1f\x7f\u0085\u2028\ufeff",
    "\u00e9 e\u0301 \u6f22 \U0001f43b \U0010ffff",
    "</script>&amp;",
]


@pytest.fixture
def read_rows(connection, user_id):
    def read():
        rows = connection.execute(
            f"SELECT json, {RENDERED}, id::text FROM tasks WHERE user_id = %s ORDER BY id",
            (user_id,),
        ).fetchall()
        assert rows
        return rows

    return read


def test_stored_representation_is_the_row_rendered_anew(
    client, make_task, read_rows, connection, user_id
):
    tasks = [make_task(title=title, description=title) for title in TITLES]
    client.patch(tasks[0].url, json={"description": None, "completed": True})
    client.put(tasks[1].url, json={"title": TITLES[2]})
    client.patch(f"{tasks[2].url}/complete")
    client.delete(tasks[3].url)
    client.delete(tasks[4].url)
    client.post(f"{tasks[4].url}/restore")
    connection.execute(
        "INSERT INTO tasks (user_id, id, title) VALUES (%s, %s, 'By hand')", (user_id, uuid.uuid4())
    )
    connection.execute("UPDATE tasks SET completed = true WHERE user_id = %s", (user_id,))

    for stored, rendered, _ in read_rows():
        assert stored == rendered


@pytest.mark.parametrize("title", TITLES)
def test_every_read_sends_the_stored_representation(client, make_task, tasks_url, read_rows, title):
    task = make_task(title=title)
    ((stored, _, _),) = read_rows()

    assert client.get(task.url).text == stored
    assert client.get(tasks_url).text == f"[{stored}]"
    assert json.loads(stored) == task
    assert task["title"] == title.strip()


def test_representation_cannot_be_set_by_hand(task, read_rows, connection):
    connection.execute("UPDATE tasks SET json = '{}' WHERE id = %s", (task["id"],))

    ((stored, rendered, _),) = read_rows()
    assert stored == rendered
    assert json.loads(stored)["revision"] > task["revision"]


def test_row_without_a_stored_representation_is_rendered_by_the_read(
    client, task, tasks_url, user_id, connection
):
    """A row of an earlier version, before its renewal."""
    connection.execute("SET session_replication_role = replica")
    connection.execute("UPDATE tasks SET json = NULL WHERE id = %s", (task["id"],))
    connection.execute("RESET session_replication_role")

    device = Device(client, f"/api/{user_id}/changes")

    assert client.get(task.url).json == task
    assert client.get(tasks_url).json == [task]
    assert device.sync() == {task["id"]: task}
