"""A model of tasks: the result of each change, written from the contract alone."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

# The value of each writable member that a POST does not have, or that a PATCH sets to null.
DEFAULTS: dict[str, Any] = {
    "title": None,
    "description": None,
    "completed": False,
    "completed_at": None,
    "priority": "none",
    "labels": [],
    "due_date": None,
    "due_time": None,
    "time_zone": None,
    "start_date": None,
    "metadata": {},
}
NO_TASK = DEFAULTS | {"due_at": None}


def change_members(
    task: Mapping[str, Any], changes: Mapping[str, Any], *, is_patch: bool
) -> dict[str, Any]:
    """Return the writable members and `due_at` of the task after a PATCH, a PUT or a POST.

    `completed_at` is "now" if the server sets it.
    """
    after = {name: task[name] for name in NO_TASK}
    for name in changes.keys() & DEFAULTS.keys():
        value = changes[name]
        if name == "metadata" and is_patch and value is not None:
            kept = {key: text for key, text in task[name].items() if key not in value}
            after[name] = kept | {key: text for key, text in value.items() if text is not None}
        elif value is None and is_patch:
            after[name] = DEFAULTS[name]
        else:
            after[name] = value
    after["labels"] = sorted(after["labels"])
    if after["due_time"]:
        after["due_time"] = time.fromisoformat(after["due_time"]).isoformat()
    sent = changes.get("completed_at")
    if not after["completed"]:
        after["completed_at"] = None
    elif sent:
        after["completed_at"] = write_moment(datetime.fromisoformat(sent))
    else:
        after["completed_at"] = task["completed_at"] or "now"
    after["due_at"] = find_moment(after["due_date"], after["due_time"], after["time_zone"])
    return after


def find_moment(day: str | None, time_of_day: str | None, zone: str | None) -> str | None:
    """Return the moment of a wall-clock time, or None if a part of it is missing."""
    if not (day and time_of_day and zone):
        return None
    wall_clock = datetime.combine(date.fromisoformat(day), time.fromisoformat(time_of_day))
    return write_moment(wall_clock.replace(tzinfo=ZoneInfo(zone), fold=0))


def write_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def is_valid(task: Mapping[str, Any]) -> bool:
    """Return whether the task fulfils the rules on several members, and those of its labels."""
    keys = {label.casefold() for label in task["labels"]}
    return (
        not (task["due_time"] and not task["due_date"])
        and not (task["time_zone"] and not task["due_time"])
        and not (task["start_date"] and task["due_date"] and task["start_date"] > task["due_date"])
        and len(keys) == len(task["labels"]) <= 20
        and len(task["metadata"]) <= 20
    )
