"""A device that works offline with lists and trees, written from docs/order.md and docs/sync.md.

Like OfflineDevice, it makes one request at a time, and sends it again as it is until it has a
response. It changes the same members of tasks. It learns from `/changes` what a request has done to
other items than the one in its path.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.support.offline_requests import (
    MEMBER_ACTIONS,
    TITLES,
    Request,
    choose_valid,
    make_member_request,
)
from tests.support.task_model import NO_TASK

if TYPE_CHECKING:
    import random

    from tests.support.offline_requests import Response

MOST_TASKS = 40
MOST_LISTS = 5
PAGE_LIMITS = [3, 50, 200]

# The weight of each action of a device; the sum is 1000.
ACTIONS = {
    "create a list": 30,
    "create a task": 170,
    "patch a list": 30,
    "patch": 110,
    "put": 60,
    "complete": 50,
    "add label": 40,
    "remove label": 20,
    "rename label": 30,
    "place a task": 70,
    "complete a tree": 20,
    "move a list": 20,
    "move a task": 110,
    "delete a list": 25,
    "delete a list to the inbox": 20,
    "delete a task": 50,
    "restore a list": 40,
    "restore a task": 50,
    "sync": 40,
    "full sync": 10,
    "empty the trash": 5,
}


class TreeDevice:
    """A copy of a user's lists and tasks, the ids of those in the trash, and the next request."""

    def __init__(self, user_id: str, choose: random.Random) -> None:
        self.url = f"/api/{user_id}"
        self.choose = choose
        self.copy: dict[str, dict[str, dict[str, Any]]] = {"task": {}, "list": {}}
        self.trash: dict[str, list[str]] = {"task": [], "list": []}
        self.since = "0"
        self.limit = 200
        self.request: Request | None = None

    def next_request(self) -> Request:
        """Return the request that has no response yet, or a new one."""
        if self.request is None:
            (action,) = self.choose.choices(list(ACTIONS), list(ACTIONS.values()))
            self.request = self.make_request(action)
        return self.request

    def make_request(self, action: str) -> Request:
        kind = "list" if "list" in action else "task"
        if action == "empty the trash":
            return Request(action, "DELETE", f"{self.url}/trash")
        if action == "full sync":
            self.forget()
        if action.startswith("create") and len(self.copy[kind]) > self.most(kind):
            action = f"delete a {kind}"
        has_items = bool(self.trash[kind] if action.startswith("restore") else self.copy[kind])
        if action.endswith("sync"):
            return self.make_sync()
        if action.startswith("create") or not has_items:
            return self.make_creation(kind)
        if action in MEMBER_ACTIONS:
            task = self.copy[kind][self.choose_id(kind)]
            return make_member_request(self.choose, action, self.url, task)
        return self.make_change(action, kind)

    def most(self, kind: str) -> int:
        return MOST_LISTS if kind == "list" else MOST_TASKS

    def make_creation(self, kind: str) -> Request:
        new_id = str(uuid.UUID(int=self.choose.getrandbits(128), version=4))
        text = self.choose.choice(TITLES)
        values: dict[str, Any] = {"name": text}
        if kind == "task":
            members = choose_valid(self.choose, NO_TASK, is_patch=False)
            values = {"title": text} | members | self.choose_place()
        path = f"{self.url}/{kind}s"
        return Request(f"create a {kind}", "POST", path, values | {"id": new_id}, new_id)

    def make_change(self, action: str, kind: str) -> Request:
        choose = self.choose
        if action.startswith("restore"):
            item_id = choose.choice(self.trash[kind])
            return Request(action, "POST", self.path(kind, item_id) + "/restore", None, item_id)
        item_id = self.choose_id(kind)
        path = self.path(kind, item_id)
        base = self.copy[kind][item_id]["revision"] if choose.random() < 0.3 else None
        if action == "complete a tree":
            return Request(action, "PATCH", f"{path}/complete", {"subtasks": True}, item_id, base)
        if action.startswith("delete"):
            query = "?tasks=inbox" if action.endswith("inbox") else ""
            return Request(action, "DELETE", path + query, None, item_id, base)
        if action.startswith("move"):
            place = self.choose_place() if kind == "task" else {}
            body = place | self.choose_neighbour(kind, item_id, place)
            return Request(action, "POST", f"{path}/move", body, item_id, base)
        if action == "place a task":
            members = choose_valid(choose, self.copy[kind][item_id])
            body = self.choose_place() | (members if choose.random() < 0.5 else {})
            return Request(action, "PATCH", path, body, item_id, base)
        body = {"archived": choose.random() < 0.3, "name": choose.choice(TITLES)}
        return Request(action, "PATCH", path, body, item_id, base)

    def path(self, kind: str, item_id: str) -> str:
        return f"{self.url}/{kind}s/{item_id}"

    def choose_id(self, kind: str) -> str:
        """Return the id of an item: the devices often choose the same one, the first."""
        ids = sorted(self.copy[kind])
        return ids[0] if self.choose.random() < 0.3 else self.choose.choice(ids)

    def choose_place(self) -> dict[str, Any]:
        """Return a list, a parent, or none of them, as members of a request."""
        places: list[dict[str, Any]] = [{"list_id": None}, {"parent_id": None}]
        if self.copy["list"]:
            list_id = self.choose_id("list")
            places += [{"list_id": list_id, "parent_id": None}] * 2
        if self.copy["task"]:
            places += [{"parent_id": self.choose_id("task")}] * 3
        return self.choose.choice(places)

    def choose_neighbour(self, kind: str, item_id: str, place: dict[str, Any]) -> dict[str, Any]:
        """Return a neighbour at the target, the first or last place, or nothing for the end."""
        siblings = [
            other
            for other, value in self.copy[kind].items()
            if other != item_id and all(value[name] == place[name] for name in place)
        ]
        side = self.choose.choice(["after", "before"])
        anchor = self.choose.choice([None, *siblings, *siblings])
        return self.choose.choice([{}, {side: anchor}, {side: anchor}])

    def make_sync(self) -> Request:
        if self.since == "0":
            self.forget()
        self.limit = self.choose.choice(PAGE_LIMITS)
        return Request("sync", "GET", f"{self.url}/changes?since={self.since}&limit={self.limit}")

    def forget(self) -> None:
        """Begin a full sync."""
        self.since = "0"
        for items in self.copy.values():
            items.clear()

    def receive(self, response: Response) -> None:
        """Apply the response to the request."""
        request, self.request = self.request, None
        assert request is not None
        if request.action == "sync":
            self.apply_page(response)
        elif request.action == "empty the trash":
            self.trash = {"task": [], "list": []}
        elif (
            request.action.startswith("delete")
            or request.action == "rename label"
            or response.status in (404, 409, 412, 422)
        ):
            # Other items have changed, too, or the copy is out of date.
            self.request = self.make_sync()
            if response.status == 404 and request.action.startswith("restore"):
                self.trash["list" if "list" in request.action else "task"].remove(
                    request.task_id or ""
                )
        else:
            self.store("list" if "list" in request.action else "task", response.json)

    def apply_page(self, response: Response) -> None:
        if response.status == 410:
            self.forget()
            self.request = self.make_sync()
            return
        page = response.json
        for change in page["changes"]:
            if change["deleted"]:
                self.copy[change["type"]].pop(change["id"], None)
                if change["id"] not in self.trash[change["type"]]:
                    self.trash[change["type"]].append(change["id"])
            else:
                self.store(change["type"], change["value"])
        self.since = page["next"]
        if page["more"]:
            self.request = self.make_sync()

    def store(self, kind: str, item: dict[str, Any]) -> None:
        self.copy[kind][item["id"]] = item
        if item["id"] in self.trash[kind]:
            self.trash[kind].remove(item["id"])
