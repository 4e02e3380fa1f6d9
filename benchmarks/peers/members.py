"""The members of a task in requests and responses, for the peers that use pydantic."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

ZONES = frozenset(available_timezones())


def check_labels(labels: list[str]) -> list[str]:
    if len({label.casefold() for label in labels}) < len(labels):
        raise ValueError("Two labels differ only in case.")
    return sorted(labels)


def check_zone(name: str) -> str:
    if name not in ZONES:
        raise ValueError("There is no such time zone.")
    return name


Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Description = Annotated[str, StringConstraints(max_length=10_000)]
Priority = Literal["none", "low", "medium", "high"]
Label = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=60, pattern=r"^[^,\x00-\x1f\x7f]*$"
    ),
]
Labels = Annotated[list[Label], Field(max_length=20), AfterValidator(check_labels)]
Day = Annotated[date, Field(ge=date(1970, 1, 1), le=date(9999, 12, 30))]
Zone = Annotated[str, AfterValidator(check_zone)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Value = Annotated[str, StringConstraints(max_length=200)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TaskCreate(Body):
    title: Title
    description: Description | None = None
    completed: StrictBool = False
    completed_at: datetime | None = None
    priority: Priority = "none"
    labels: Labels = []
    due_date: Day | None = None
    due_time: time | None = None
    time_zone: Zone | None = None
    start_date: Day | None = None
    metadata: Annotated[dict[Key, Value], Field(max_length=20)] = {}


class TaskUpdate(Body):
    """A merge patch: use `model_dump(exclude_unset=True)`, which leaves the defaults out."""

    title: Title = ""
    description: Description | None = None
    completed: StrictBool = False
    completed_at: datetime | None = None
    priority: Priority = "none"
    labels: Labels = []
    due_date: Day | None = None
    due_time: time | None = None
    time_zone: Zone | None = None
    start_date: Day | None = None
    metadata: dict[Key, Value | None] = {}


class Completion(Body):
    completed: StrictBool = True


class Task(BaseModel):
    id: UUID
    user_id: UUID
    title: str
    description: str | None
    completed: bool
    completed_at: datetime | None
    priority: str
    labels: list[str]
    due_date: date | None
    due_time: time | None
    time_zone: str | None
    due_at: datetime | None
    start_date: date | None
    list_id: UUID | None
    parent_id: UUID | None
    position: str
    metadata: dict[str, str]
    created_at: datetime
    updated_at: datetime
    revision: int


# The members that determine `due_at`.
DUE = ("due_date", "due_time", "time_zone")


def moment(due_date: date | None, due_time: time | None, time_zone: str | None) -> datetime | None:
    """Return the moment at which a task is due, or None if a member is missing."""
    if due_date is None or due_time is None or time_zone is None:
        return None
    return datetime.combine(due_date, due_time, ZoneInfo(time_zone)).astimezone(UTC)


def merged_metadata(stored: dict[str, str], patch: dict[str, Any]) -> dict[str, str]:
    """Return the object after a merge patch (RFC 7396)."""
    return {key: value for key, value in (stored | patch).items() if value is not None}
