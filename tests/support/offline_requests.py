"""The requests of offline devices, and changes of the members of a task that they choose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from tests.support.task_model import change_members, is_valid

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

TITLES = ["Buy oats", "Buy rye", "Bake", "Call Ada", "Call Grace"]
DESCRIPTIONS = [None, "Two litres", "Today"]
PRIORITIES = ["none", "low", "medium", "high"]
LABELS = ["errand", "Errand", "home", "a/b", "Ärger", "\U0001f43b"]
# Days with a clock change in some of the zones, the first and the last.
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

# The actions that change members of one task, and the one that changes a label of all tasks.
MEMBER_ACTIONS = ("patch", "put", "complete", "add label", "remove label", "rename label")


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


def make_member_request(
    choose: random.Random, action: str, url: str, task: Mapping[str, Any]
) -> Request:
    """Return a change of members of the task, on the condition that the task is as given."""
    task_id = task["id"]
    path, base = f"{url}/tasks/{task_id}", task["revision"]
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
        return Request(action, "POST", f"{url}/labels/rename", body, label=label)
    if action == "put":
        return Request(action, "PUT", path, choose_put(choose, task), task_id, base)
    # Some changes break a rule: the server must refuse them.
    is_careless = choose.random() < 0.1
    changes = choose_members(choose) if is_careless else choose_valid(choose, task)
    return Request("patch", "PATCH", path, changes, task_id, base)


def choose_put(choose: random.Random, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole task as GET gave it: as it is, completed or reopened, or changed."""
    put = choose.choice(["as it is", "flipped", "changed"])
    if put == "as it is":
        return {**task}
    if put == "flipped":
        return {**task, "completed": not task["completed"]}
    return {**task, **choose_valid(choose, task, is_patch=False)}


def choose_valid(
    choose: random.Random, task: Mapping[str, Any], *, is_patch: bool = True
) -> dict[str, Any]:
    """Return members that make a valid task."""
    while True:
        changes = choose_members(choose, is_patch=is_patch)
        if is_valid(change_members(task, changes, is_patch=is_patch)):
            return changes


def choose_members(choose: random.Random, *, is_patch: bool = True) -> dict[str, Any]:
    """Return one to four changed members, or those of one kind of due date."""
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
