"""A device that works offline, written from docs/sync.md and the contract alone.

It makes one request at a time, and sends it again as it is until it has a response. It reads only
`/changes`: the revisions for its preconditions are those of its copy.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from tests.support.task_model import NO_TASK, change_members, is_valid

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

TITLES = ["Buy oats", "Buy rye", "Bake", "Call Ada", "Call Grace"]
DESCRIPTIONS = [None, "Two litres", "Today"]
PRIORITIES = ["none", "low", "medium", "high"]
LABELS = ["errand", "Errand", "home", "a/b", "Ärger", "\U0001f43b"]
# Days with a clock change in some of the zones, and the first and last valid day.
DATES = ["2026-03-29", "2026-10-25", "2026-07-01", "1970-01-01", "9999-12-30"]
TIMES = ["02:30", "02:30:00", "00:00", "23:59:59"]
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Kiritimati"]
MOMENTS = ["2026-11-21T09:30:00Z", "2026-11-20t23:59:59.999999+05:45", "0001-01-01T00:00:00Z"]
KEYS = ["$", "a.b", "ß", "_schema"]
TEXTS = ["", "x", "\U0001f43b"]
KINDS_OF_DUE = [
    ("due_date", "due_time", "time_zone"),
    ("due_date", "due_time"),
    ("due_date", "start_date"),
    ("due_date",),
    ("due_time",),
    ("time_zone",),
]
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


class Response(NamedTuple):
    """A response; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, eq=False)
class Request:
    """A request of a device; `base` is the revision that it has as `If-Match`."""

    action: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    task_id: str | None = None
    base: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    label: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The header fields to send."""
        match = {} if self.base is None else {"If-Match": f'"{self.base}"'}
        return self.headers | match

    @property
    def is_write(self) -> bool:
        return self.method != "GET"

    @property
    def has_key(self) -> bool:
        return "Idempotency-Key" in self.headers


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
        body = {"title": self.choose.choice(TITLES), **self.choose_valid(NO_TASK, is_patch=False)}
        path = f"{self.url}/tasks"
        new_id = str(uuid.UUID(int=self.choose.getrandbits(128), version=4))
        if action == "create with a key":
            return Request(action, "POST", path, body, headers={"Idempotency-Key": new_id})
        return Request("create", "POST", path, body | {"id": new_id}, new_id)

    def make_change(self, action: str) -> Request:
        """Return a change of a task of the copy, on the condition that the copy is up to date."""
        choose = self.choose
        # The devices often choose the same task: the first one.
        task_id = min(self.copy) if choose.random() < 0.5 else choose.choice(list(self.copy))
        task = self.copy[task_id]
        path, base = f"{self.url}/tasks/{task_id}", task["revision"]
        if action == "delete":
            return Request(action, "DELETE", path, None, task_id, base)
        if action == "complete":
            body = choose.choice([None, {"completed": True}, {"completed": False}])
            if body and choose.random() < 0.5:
                body = body | {"completed_at": choose.choice(MOMENTS)}
            return Request(action, "PATCH", f"{path}/complete", body, task_id, base)
        if action in {"add label", "remove label"}:
            # Without a precondition: the labels of the other device stay.
            label = choose.choice(LABELS)
            method = "PUT" if action == "add label" else "DELETE"
            label_path = f"{path}/labels/{quote(label, safe='')}"
            return Request(action, method, label_path, None, task_id, label=label)
        if action == "rename label":
            label, to_label = choose.choice(LABELS), choose.choice([*LABELS, None])
            body = {"from": label, "to": to_label}
            return Request(action, "POST", f"{self.url}/labels/rename", body, label=label)
        if action == "put":
            return Request(action, "PUT", path, self.choose_put(task), task_id, base)
        # Some changes break a rule: the server must refuse them.
        is_careless = choose.random() < 0.1
        changes = self.choose_members() if is_careless else self.choose_valid(task)
        return Request("patch", "PATCH", path, changes, task_id, base)

    def choose_put(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return a whole task as GET returned it: unchanged, completed or reopened, or changed."""
        put = self.choose.choice(["as it is", "flipped", "changed"])
        if put == "as it is":
            return task
        if put == "flipped":
            return task | {"completed": not task["completed"]}
        return task | self.choose_valid(task, is_patch=False)

    def choose_valid(self, task: dict[str, Any], *, is_patch: bool = True) -> dict[str, Any]:
        """Return members that make a valid task."""
        while True:
            changes = self.choose_members(is_patch=is_patch)
            if is_valid(change_members(task, changes, is_patch=is_patch)):
                return changes

    def choose_members(self, *, is_patch: bool = True) -> dict[str, Any]:
        """Return one to four changed members, or those of one kind of due date."""
        choose = self.choose
        values: dict[str, Any] = {
            "title": choose.choice(TITLES),
            "description": choose.choice(DESCRIPTIONS),
            "completed": choose.random() < 0.5,
            "completed_at": choose.choice([None, *MOMENTS]),
            "priority": choose.choice(PRIORITIES),
            "labels": choose.sample(LABELS, choose.randrange(4)),
            "due_date": choose.choice([None, *DATES]),
            "due_time": choose.choice([None, *TIMES]),
            "time_zone": choose.choice([None, *ZONES]),
            "start_date": choose.choice([None, None, *DATES]),
            "metadata": {key: choose.choice(TEXTS) for key in choose.sample(KEYS, 2)},
        }
        if is_patch:
            values["metadata"][choose.choice(KEYS)] = None
            for name in ("priority", "labels", "metadata"):
                if choose.random() < 0.1:
                    values[name] = None
        if choose.random() < 0.4:
            return {name: values[name] for name in choose.choice(KINDS_OF_DUE)}
        return {name: values[name] for name in choose.sample(list(values), choose.randint(1, 4))}

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
