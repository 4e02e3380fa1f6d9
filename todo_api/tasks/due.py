"""When a task is due: its columns, filters and sort key.

With `due_date`, a task is due on a day. With `due_time`, too, it is due at this time, wherever the
user is. With `time_zone`, too, it is due at this time in the zone, which is a moment: `due_at`.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    DateTime,
    Text,
    and_,
    any_,
    bindparam,
    case,
    literal_column,
    or_,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.resources.calendar_types import UNIX_EPOCH, microseconds
from todo_api.resources.resource import ComputedColumn, MemberRule
from todo_api.resources.time_zones import instant
from todo_api.resources.types import Filter, SortKey
from todo_api.web.calendar_fields import LAST_DATE
from todo_api.web.fields import BooleanParameter, WordsParameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement, Table

DUE_WORDS = ("today", "overdue", "upcoming", "none")

# A task without a time is due at the end of its day; a task without a date comes after all dates.
END_OF_DAY = time(23, 59, 59, 999999)
NO_DUE_DATE = datetime.combine(LAST_DATE + timedelta(days=1), time())

WALL_CLOCK = DateTime()

# The wall-clock time at which a task is due, for sorting. The trigger writes it.
DUE_SORT = Column("due_sort", WALL_CLOCK, nullable=False, server_default=text(f"'{NO_DUE_DATE}'"))
DERIVATION = f"coalesce(NEW.due_date + coalesce(NEW.due_time, '{END_OF_DAY}'), '{NO_DUE_DATE}')"

DUE_AT = ComputedColumn(
    "due_at",
    ("due_date", "due_time", "time_zone"),
    instant,
)

RULES = {
    "due_time_needs_due_date": MemberRule(
        "NEW.due_time IS NULL OR NEW.due_date IS NOT NULL",
        {
            "due_time": "Needs a due_date.",
            "due_date": "Send due_time: null, too: the task has a due_time.",
        },
    ),
    "time_zone_needs_due_time": MemberRule(
        "NEW.time_zone IS NULL OR NEW.due_time IS NOT NULL",
        {
            "time_zone": "Needs a due_time.",
            "due_time": "Send time_zone: null, too: the task has a time_zone.",
        },
    ),
    "start_date_not_after_due_date": MemberRule(
        "NEW.start_date <= NEW.due_date",
        {
            "start_date": "Must not be after due_date.",
            "due_date": "Must not be before start_date.",
        },
    ),
}


def due_filters(table: Table) -> Mapping[str, Filter]:
    """Return the filters that depend on the day or the moment."""
    columns = table.c
    today = bindparam("today", type_=Date)
    day_start, day_end, now = (
        bindparam(name, type_=DateTime(timezone=True)) for name in ("day_start", "day_end", "now")
    )
    local_now = bindparam("local_now", type_=WALL_CLOCK)
    has_moment = columns.due_at.is_not(None)
    words = bindparam("due", type_=ARRAY(Text))

    def is_sent(word: str) -> ColumnElement[bool]:
        return literal_column(f"'{word}'", Text) == any_(words)

    is_today = case(
        (has_moment, and_(columns.due_at >= day_start, columns.due_at < day_end)),
        else_=columns.due_date == today,
    )
    is_later = case((has_moment, columns.due_at >= day_end), else_=columns.due_date > today)
    has_passed = case((has_moment, columns.due_at < now), else_=columns.due_sort < local_now)
    due = or_(
        and_(is_sent("today"), is_today),
        and_(is_sent("upcoming"), is_later),
        and_(is_sent("overdue"), ~columns.completed, has_passed),
        and_(is_sent("none"), columns.due_date.is_(None)),
    )
    description = (
        "`today`: only tasks that are due today. `overdue`: only tasks that are not completed, and "
        "whose time has passed. `upcoming`: only tasks that are due after today. `none`: only "
        "tasks without a due date. Several words, separated by commas, mean any of them."
    )
    started = bindparam("started", type_=Boolean)
    has_started = case((columns.start_date.is_(None), true()), else_=columns.start_date <= today)
    return {
        "due": Filter(
            WordsParameter(DUE_WORDS, {"description": description, "example": "today"}),
            due,
            is_by_day=True,
            by_moment=frozenset({"overdue"}),
        ),
        "started": Filter(
            BooleanParameter(
                metadata={
                    "description": (
                        "With `true`, only tasks without a `start_date`, or with one that is not "
                        "after today. With `false`, only the other tasks."
                    ),
                    "example": True,
                }
            ),
            has_started == started,
            is_by_day=True,
        ),
    }


def due_sort_key(table: Table) -> SortKey:
    """Return the sort key `due`: by wall clock, tasks without a time at the end of their day."""
    return SortKey(table.c.due_sort, WALL_CLOCK, to_cursor, to_parameter, ("due_date", "due_time"))


def to_cursor(due_date: str | None, due_time: str | None) -> int:
    """Return the microseconds from 1970 to the wall-clock time."""
    if due_date is None:
        wall_clock = NO_DUE_DATE
    else:
        due = time.fromisoformat(due_time) if due_time else END_OF_DAY
        wall_clock = datetime.combine(date.fromisoformat(due_date), due)
    return microseconds(wall_clock.replace(tzinfo=UNIX_EPOCH.tzinfo))


def to_parameter(value: Any) -> datetime:
    """Return the wall-clock time of a cursor. Raises ValueError."""
    if type(value) is not int:
        raise ValueError(value)
    last = microseconds(NO_DUE_DATE.replace(tzinfo=UNIX_EPOCH.tzinfo))
    if not 0 <= value <= last:
        raise ValueError(value)
    return UNIX_EPOCH.replace(tzinfo=None) + timedelta(microseconds=value)
