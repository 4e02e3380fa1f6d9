"""An account with lists and trees of tasks, and the facts that hold for every account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.api import pages
from todo_api.lists.fields import LIST
from todo_api.resources.representation import rendered_row
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    import psycopg
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

LEVELS = 5

TASKS = "SELECT id, parent_id, list_id, deleted_at FROM tasks WHERE user_id = %s"
LISTS = "SELECT id, deleted_at FROM lists WHERE user_id = %s"
COUNTERS = "SELECT tasks, trashed_tasks, lists, trashed_lists, bytes FROM users WHERE id = %s"
BYTES = """
    SELECT coalesce(sum(octet_length(json)), 0)
    FROM (
        SELECT json FROM tasks WHERE user_id = %(user)s
        UNION ALL
        SELECT json FROM lists WHERE user_id = %(user)s
    ) AS owned
"""

# The members that also change if a task is moved, deleted or restored.
STAMPS = ("revision", "updated_at")


class Account:
    """The tasks and lists of one user, through HTTP."""

    def __init__(self, client: FlaskClient, user_id: str) -> None:
        self.client = client
        self.url = f"/api/{user_id}"

    def create(self, kind: str, **values: Any) -> dict[str, Any]:
        """Create a task or a list; return its JSON object."""
        named = {"title": "Buy oat milk"} if kind == "tasks" else {"name": "Groceries"}
        response = self.client.post(f"{self.url}/{kind}", json=named | values)
        assert response.status_code == 201, response.text
        return response.json

    def task(self, title: str = "Buy oat milk", **values: Any) -> dict[str, Any]:
        return self.create("tasks", title=title, **values)

    def list(self, name: str = "Groceries", **values: Any) -> dict[str, Any]:
        return self.create("lists", name=name, **values)

    def chain(self, levels: int, **values: Any) -> list[dict[str, Any]]:
        """Create a task, a subtask of it, and so on; return them from the top."""
        tasks = [self.task("Level 1", **values)]
        while len(tasks) < levels:
            tasks.append(self.task(f"Level {len(tasks) + 1}", parent_id=tasks[-1]["id"]))
        return tasks

    def get(self, item: dict[str, Any], kind: str = "tasks") -> dict[str, Any]:
        response = self.client.get(f"{self.url}/{kind}/{item['id']}")
        assert response.status_code == 200, response.text
        return response.json

    def send(
        self, method: str, item: dict[str, Any], path: str = "", **options: Any
    ) -> TestResponse:
        """Send a request about an item; a list has a name, and a task has none."""
        kind = "lists" if "name" in item else "tasks"
        url = f"{self.url}/{kind}/{item['id']}{path}"
        return self.client.open(url, method=method, **options)

    def patch(self, item: dict[str, Any], **changes: Any) -> TestResponse:
        return self.send("PATCH", item, json=changes)

    def move(self, item: dict[str, Any], **target: Any) -> TestResponse:
        return self.send("POST", item, "/move", json=target)

    def delete(self, item: dict[str, Any], query: str = "") -> TestResponse:
        return self.send("DELETE", item, query)

    def restore(self, item: dict[str, Any]) -> TestResponse:
        return self.send("POST", item, "/restore")

    def complete(self, item: dict[str, Any], **options: Any) -> TestResponse:
        return self.send("PATCH", item, "/complete", **options)

    def revision(self) -> int:
        return self.client.get(self.url).json["revision"]

    def live(self, kind: str = "tasks", query: str = "archived=true") -> dict[str, dict[str, Any]]:
        """Return all live items, by id."""
        url = f"{self.url}/{kind}?limit=200" + (f"&{query}" if kind == "tasks" else "")
        return {item["id"]: item for page in pages(self.client, url) for item in page}

    def order(self, query: str) -> list[str]:
        """Return the ids of the tasks that pass these filters, in the user's order."""
        url = f"{self.url}/tasks?sort=position&limit=200&{query}"
        return [task["id"] for page in pages(self.client, url) for task in page]

    def order_of_lists(self) -> list[str]:
        url = f"{self.url}/lists?sort=position&limit=200"
        return [item["id"] for page in pages(self.client, url) for item in page]

    def trash(self) -> set[str]:
        """Return the ids of all items in the trash."""
        return {item["id"] for page in pages(self.client, f"{self.url}/trash") for item in page}


def without_stamps(items: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the items without the members that each change sets."""
    return {
        key: {name: value for name, value in item.items() if name not in STAMPS}
        for key, item in items.items()
    }


def errors_of(response: TestResponse) -> list[dict[str, str]]:
    assert response.status_code == 422, response.text
    return response.json["errors"]


def pointers_of(response: TestResponse) -> list[str]:
    return [error["pointer"] for error in errors_of(response)]


def assert_representations_are_right(connection: psycopg.Connection, user_id: str) -> None:
    """The stored JSON of every task and list is what its columns render to."""
    for resource in (TASK, LIST):
        table = resource.table.name
        rendered = rendered_row(resource.table, resource.field_names, table)
        statement = f"SELECT json, {rendered} FROM {table} WHERE user_id = %s"
        for stored, expected in connection.execute(statement, (user_id,)):
            assert stored == expected


def assert_trees_are_right(connection: psycopg.Connection, user_id: str) -> None:
    """Every live task is below live tasks of its list; the user's counters equal a count."""
    assert_representations_are_right(connection, user_id)
    tasks = {row[0]: row[1:] for row in connection.execute(TASKS, (user_id,))}
    lists = dict(connection.execute(LISTS, (user_id,)).fetchall())
    live = {key: task for key, task in tasks.items() if task[2] is None}
    for key, (parent_id, list_id, _) in live.items():
        above, seen = parent_id, [key]
        while above is not None:
            assert above in live, f"the parent of {seen[-1]} is not live"
            assert above not in seen, f"a cycle: {seen}"
            assert live[above][1] == list_id, f"{above} and {key} are in different lists"
            seen.append(above)
            above = live[above][0]
        assert len(seen) <= LEVELS, seen
        assert list_id is None or lists[list_id] is None, f"the list of {key} is not live"
    live_lists = sum(deleted_at is None for deleted_at in lists.values())
    (size,) = connection.execute(BYTES, {"user": user_id}).fetchone()
    counted = (len(live), len(tasks) - len(live), live_lists, len(lists) - live_lists, size)
    counters = connection.execute(COUNTERS, (user_id,)).fetchone()
    assert (counters or (0, 0, 0, 0, 0)) == counted
