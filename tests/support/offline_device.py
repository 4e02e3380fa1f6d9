"""A device that works offline, written from docs/sync.md and the contract alone.

It makes one request at a time, and sends it again as it is until it has a response. It reads only
`/changes`: the revisions for its preconditions are those of its copy.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
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

MOST_TASKS = 20
PAGE_LIMITS = [2, 7, 200]

# The weight of each action of a device; the sum is 1000.
ACTIONS = {
    "create": 90,
    "create with a key": 50,
    "patch": 300,
    "put": 90,
    "complete": 110,
    "add label": 60,
    "remove label": 40,
    "rename label": 20,
    "delete": 95,
    "restore": 75,
    "sync": 50,
    "full sync": 10,
    "empty trash": 10,
}


class OfflineDevice:
    """A copy of a user's tasks, the deleted ones that can be restored, and the next request.

    `trash` has the revision of each tombstone, or None if the device does not know it.
    """

    def __init__(self, user_id: str, choose: random.Random) -> None:
        self.url = f"/api/{user_id}"
        self.choose = choose
        self.copy: dict[str, dict[str, Any]] = {}
        self.trash: dict[str, int | None] = {}
        self.since = "0"
        self.limit = 200
        self.etags: dict[str, str] = {}
        self.request: Request | None = None
        self.full_syncs = 0

    def next_request(self) -> Request:
        """Return the request that has no response yet, or a new one."""
        if self.request is None:
            (action,) = self.choose.choices(list(ACTIONS), list(ACTIONS.values()))
            self.request = self.make_request(action)
        return self.request

    def make_request(self, action: str) -> Request:
        choose = self.choose
        if action == "empty trash":
            return Request(action, "DELETE", f"{self.url}/trash")
        if action == "restore" and self.trash:
            task_id = choose.choice(list(self.trash))
            path = f"{self.url}/tasks/{task_id}/restore"
            return Request(action, "POST", path, task_id=task_id, base=self.trash[task_id])
        if action in {"sync", "full sync", "restore"}:
            self.limit = choose.choice(PAGE_LIMITS)
            if action == "full sync":
                self.forget()
            return self.make_sync()
        if action.startswith("create") and len(self.copy) > MOST_TASKS:
            action = "delete"
        if action.startswith("create") or not self.copy:
            return self.make_creation(action)
        return self.make_change(action)

    def make_creation(self, action: str) -> Request:
        body = {
            "title": self.choose.choice(TITLES),
            **choose_valid(self.choose, NO_TASK, is_patch=False),
        }
        path = f"{self.url}/tasks"
        new_id = str(uuid.UUID(int=self.choose.getrandbits(128), version=4))
        if action == "create with a key":
            return Request(action, "POST", path, body, headers={"Idempotency-Key": new_id})
        return Request("create", "POST", path, body | {"id": new_id}, new_id)

    def make_change(self, action: str) -> Request:
        """Return a change of a task of the copy, on the condition that the copy is up to date."""
        # The devices often choose the same task: the first one.
        is_first = self.choose.random() < 0.5
        task_id = min(self.copy) if is_first else self.choose.choice(list(self.copy))
        task = self.copy[task_id]
        if action in MEMBER_ACTIONS:
            return make_member_request(self.choose, action, self.url, task)
        path = f"{self.url}/tasks/{task_id}"
        return Request("delete", "DELETE", path, None, task_id, task["revision"])

    def change_again(self, request: Request, task: dict[str, Any]) -> None:
        """Send a refused change of single members again, based on the task as it is now."""
        if request.action in {"patch", "complete"}:
            self.request = replace(request, base=task["revision"])

    def make_sync(self) -> Request:
        path = f"{self.url}/changes?since={self.since}&limit={self.limit}"
        known = {"If-None-Match": self.etags[path]} if path in self.etags else {}
        return Request("sync", "GET", path, headers=known)

    def forget(self) -> None:
        """Begin a full sync. A 304 would leave the copy empty, so the ETags are deleted, too."""
        self.since = "0"
        self.etags.clear()
        self.copy.clear()
        self.full_syncs += 1

    def receive(self, response: Response) -> None:
        """Apply the response to the request."""
        request, self.request = self.request, None
        assert request is not None
        if request.action == "sync":
            self.apply_page(request, response)
        elif request.action == "rename label":
            self.request = self.make_sync()
        elif request.action == "empty trash":
            self.trash.clear()
        elif response.is_success:
            self.apply_success(request, response)
        elif response.status == 412:
            task = response.json["current"]
            # A restore gets 412 only for a task in the trash, any other change for a live one.
            if request.action == "restore":
                self.remove(task["id"], task["revision"])
            else:
                self.store(task)
                self.change_again(request, task)
        elif response.status == 404:
            assert request.task_id
            self.copy.pop(request.task_id, None)
            # The other device may have deleted the task.
            self.trash.pop(request.task_id, None)
            if request.action != "restore":
                self.trash[request.task_id] = None

    def apply_success(self, request: Request, response: Response) -> None:
        if response.status == 204:
            assert request.task_id
            self.remove(request.task_id, None)
        else:
            self.store(response.json)

    def apply_page(self, request: Request, response: Response) -> None:
        if response.status == 304:
            return
        if response.status == 410:
            self.forget()
            self.request = self.make_sync()
            return
        page = response.json
        for change in page["changes"]:
            if change["deleted"]:
                self.remove(change["id"], change["revision"])
            else:
                self.store(change["value"])
        self.etags = {request.path: response.headers["etag"]}
        self.since = page["next"]
        if page["more"]:
            self.request = self.make_sync()

    def store(self, task: dict[str, Any]) -> None:
        self.copy[task["id"]] = task
        self.trash.pop(task["id"], None)

    def remove(self, task_id: str, revision: int | None) -> None:
        self.copy.pop(task_id, None)
        self.trash[task_id] = revision
