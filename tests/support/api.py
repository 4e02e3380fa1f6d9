"""The API as a client sees it: tasks, entity tags, pages, and a device that works offline."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from todo_api.db.schema_version import SCHEMA_VERSION
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse


# What the ETag of a task has before its revision: the number of the latest migration.
REPRESENTATION = f"{int(SCHEMA_VERSION)}."

# With a revision put in, these look like ETags of a task and are none.
OTHER_TAGS = ['"0.{}"', '"{}"', f'"{REPRESENTATION}{{}}-abcd"', f'"{REPRESENTATION}0{{}}x"']

# What statements that insert a task take: a value for each field.
NEW_TASK = {field.name: field.default for field in TASK.fields} | {"title": "Buy oat milk"}


def etag(revision: int) -> str:
    """The ETag that a task of this revision has."""
    return f'"{REPRESENTATION}{revision}"'


class Task(dict):
    """A task's JSON, where it is, and its ETag."""

    @property
    def url(self) -> str:
        return f"/api/{self['user_id']}/tasks/{self['id']}"

    @property
    def etag(self) -> str:
        return etag(self["revision"])


def next_url(answer: TestResponse) -> str | None:
    """The page that follows, by the Link header, or None on the last one."""
    link = answer.headers.get("Link")
    return link and re.fullmatch(r'<([^>]*)>; rel="next"', link).group(1)


def pages(client: FlaskClient, url: str) -> Iterator[list[dict[str, Any]]]:
    """The list at the URL, page by page."""
    while url:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield answer.json
        url = next_url(answer)


class Device:
    """An offline client: what it holds, and how far it is."""

    def __init__(self, client: FlaskClient, url: str, limit: int = 200) -> None:
        self.client, self.url, self.limit = client, url, limit
        self.tasks: dict[str, dict[str, Any]] = {}
        self.since = "0"
        self.restarts = 0

    def page(self) -> bool:
        """Apply one page; whether there is more."""
        answer = self.client.get(f"{self.url}?since={self.since}&limit={self.limit}")
        if answer.status_code == 410:
            self.since, self.tasks = "0", {}
            self.restarts += 1
            return True
        assert answer.status_code == 200, answer.text
        numbers = [change["revision"] for change in answer.json["changes"]]
        assert numbers == sorted(set(numbers))
        for change in answer.json["changes"]:
            if change.pop("deleted"):
                assert set(change) == {"id", "revision", "deleted_at"}
                self.tasks.pop(change["id"], None)
            else:
                self.tasks[change["id"]] = change
        self.since = answer.json["next"]
        return answer.json["more"]

    def sync(self) -> dict[str, dict[str, Any]]:
        """Apply all that there is; the tasks that the device then holds."""
        while self.page():
            pass
        return self.tasks
