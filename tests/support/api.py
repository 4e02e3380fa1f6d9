"""Parts of an API client: tasks, ETags, pages, and a device that syncs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse


# Formats of ETags that no task has. {} stands for a revision.
OTHER_TAGS = ['"8.{}"', '"{}-abcd"', '"0{}"', '"{}x"']

# A value for each field of a task, for the statements that insert one.
NEW_TASK = {field.name: field.default for field in TASK.fields} | {"title": "Buy oat milk"}


def etag(revision: int) -> str:
    """Return the ETag of a task with this revision."""
    return f'"{revision}"'


class Task(dict):
    """A task's JSON object, with its URL and its ETag."""

    @property
    def url(self) -> str:
        return f"/api/{self['user_id']}/tasks/{self['id']}"

    @property
    def etag(self) -> str:
        return etag(self["revision"])


def next_url(response: TestResponse) -> str | None:
    """Return the URL of the next page from the Link header, or None on the last page."""
    link = response.headers.get("Link")
    return link and re.fullmatch(r'<([^>]*)>; rel="next"', link).group(1)


def pages(client: FlaskClient, url: str) -> Iterator[list[dict[str, Any]]]:
    """Get each page of the list at the URL."""
    while url:
        response = client.get(url)
        assert response.status_code == 200, response.text
        yield response.json
        url = next_url(response)


class Device:
    """A client with its own copy of the tasks, which it updates from `/changes`."""

    def __init__(self, client: FlaskClient, url: str, limit: int = 200) -> None:
        self.client, self.url, self.limit = client, url, limit
        self.tasks: dict[str, dict[str, Any]] = {}
        self.since = "0"
        self.restarts = 0

    def sync_page(self) -> bool:
        """Apply one page of changes; return whether more pages follow."""
        response = self.client.get(f"{self.url}?since={self.since}&limit={self.limit}")
        if response.status_code == 410:
            self.since, self.tasks = "0", {}
            self.restarts += 1
            return True
        assert response.status_code == 200, response.text
        positions = [(change["revision"], change["id"]) for change in response.json["changes"]]
        assert positions == sorted(set(positions))
        for change in response.json["changes"]:
            position = {"type": "task", "id": change["id"], "revision": change["revision"]}
            if change["deleted"]:
                moment = change["deleted_at"]
                assert change == {**position, "deleted": True, "deleted_at": moment}
                self.tasks.pop(change["id"], None)
            else:
                task = change["value"]
                assert change == {**position, "deleted": False, "value": task}
                assert (task["id"], task["revision"]) == (change["id"], change["revision"])
                self.tasks[change["id"]] = task
        self.since = response.json["next"]
        return response.json["more"]

    def sync(self) -> dict[str, dict[str, Any]]:
        """Apply all pages of changes; return the tasks of the device."""
        while self.sync_page():
            pass
        return self.tasks
