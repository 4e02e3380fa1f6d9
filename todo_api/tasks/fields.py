"""The members of a task. docs/development.md says how to add a member."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import Column, Index, Text, case, func
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.tables import metadata
from todo_api.lists.fields import LIST_OF_PARENT
from todo_api.resources.calendar_types import DateType, TimeOfDayType, TimestampType, TimeZoneType
from todo_api.resources.collection_types import METADATA, LabelsType
from todo_api.resources.fields import Field
from todo_api.resources.order import DERIVATION, POSITION
from todo_api.resources.resource import ComputedColumn, Resource, resource_table
from todo_api.resources.types import BooleanType, EnumType, IdType, TextType
from todo_api.tasks import due, places
from todo_api.tasks.place_filters import complete_filters, place_filters
from todo_api.web.fields import EXAMPLE_LIST_ID, EXAMPLE_TASK_ID, EXAMPLE_TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterable

LABELS = LabelsType(maximum=20, length=60)

FIELDS = (
    Field(
        name="title",
        type=TextType(minimum=1, maximum=255, is_stripped=True),
        required=True,
        is_sortable=True,
        description="What to do. White space at the start and end is removed.",
        example="Buy oat milk",
    ),
    Field(
        name="description",
        type=TextType(maximum=10_000),
        nullable=True,
        description="More about the task.",
        example="Two litres, the blue one",
    ),
    Field(
        name="completed",
        type=BooleanType(),
        default=False,
        is_reset_by_null=False,
        is_filterable=True,
        is_in_example=False,
        description="Whether the task is completed.",
        example=True,
    ),
    Field(
        name="completed_at",
        type=TimestampType(),
        nullable=True,
        is_filterable=True,
        is_sortable=True,
        is_in_example=False,
        # The trigger writes the time of the change if a completed task has no other time.
        adjust=lambda column, sent, merged: case(
            (merged["completed"], func.coalesce(sent, column))
        ),
        description=(
            "When the task was completed; null while it is not. The server sets it. A client can "
            "send it with `completed: true` or for a completed task; null then changes nothing."
        ),
        example=EXAMPLE_TIMESTAMP,
    ),
    Field(
        name="priority",
        type=EnumType(values=("none", "low", "medium", "high")),
        default="none",
        is_filterable=True,
        is_sortable=True,
        description="How important the task is. `sort` has the order none, low, medium, high.",
        example="high",
    ),
    Field(
        name="labels",
        type=LABELS,
        default=[],
        is_filterable=True,
        description="Labels, sorted by code point. No two of them are equal if case is ignored.",
        example=["errand", "shop"],
    ),
    Field(
        name="due_date",
        type=DateType(),
        nullable=True,
        is_filterable=True,
        description="The day on which the task is due. No time zone shifts it.",
        example="2026-11-21",
    ),
    Field(
        name="due_time",
        type=TimeOfDayType(),
        nullable=True,
        description="The time of the day at which the task is due. It needs a `due_date`.",
        example="09:30:00",
    ),
    Field(
        name="time_zone",
        type=TimeZoneType(),
        nullable=True,
        description=(
            "The IANA name of the time zone of `due_time`, which it needs. null means this time "
            "wherever the user is."
        ),
        example="Europe/Berlin",
    ),
    Field(
        name="due_at",
        type=TimestampType(),
        nullable=True,
        is_read_only=True,
        description=(
            "The moment at which the task is due, if it has `due_date`, `due_time` and `time_zone`."
        ),
        example="2026-11-21T08:30:00.000000Z",
    ),
    Field(
        name="start_date",
        type=DateType(),
        nullable=True,
        description="The first day on which the user can work on it, not after `due_date`.",
        example="2026-11-20",
    ),
    Field(
        name="list_id",
        type=IdType(
            reserved=(UUID(LIST_OF_PARENT),), detail=places.RAISED["list_id_known"]["list_id"]
        ),
        nullable=True,
        absent=UUID(LIST_OF_PARENT),
        is_in_example=False,
        # Without a list, a task with a parent is in the list of the parent.
        adjust=lambda column, sent, _: case((sent == places.list_of_parent, column), else_=sent),
        description=(
            "The list of the task; null is the Inbox. A subtask is in the list of its parent, so a "
            "request with `parent_id` does not need `list_id`."
        ),
        example=EXAMPLE_LIST_ID,
    ),
    Field(
        name="parent_id",
        type=IdType(),
        nullable=True,
        is_in_example=False,
        description=(
            "The task of which this is a subtask; null for none. A tree has at most 5 levels. If a "
            "task is deleted or changes its list, its subtasks follow."
        ),
        example="019aa5c8-7b4c-7d15-a2e0-6c3f8e9d0b12",
    ),
    POSITION,
    METADATA,
)

# The labels after case-folding, in the order of the labels.
LABEL_KEYS: Column[list[str]] = Column(
    "label_keys", ARRAY(Text), nullable=False, server_default="{}"
)


def label_key(label: str) -> str:
    """Return the label after case-folding."""
    return label.casefold()


def label_keys(labels: Iterable[str]) -> list[str]:
    return [label_key(label) for label in labels]


TABLE = resource_table(
    metadata,
    "tasks",
    FIELDS,
    # For lists with the newest task first: of all tasks, and with a filter by `completed`; and for
    # lists by the time at which tasks are due.
    indexes=(
        ("created_at", "id"),
        ("completed", "created_at", "id"),
        ("completed", "due_sort", "id"),
        # For lists in the user's order.
        ("place", "position", "id"),
    ),
    hidden=(LABEL_KEYS, due.DUE_SORT, places.PLACE),
)
Index(None, TABLE.c.user_id, TABLE.c.parent_id, postgresql_where=TABLE.c.parent_id.is_not(None))

TASK = Resource(
    name="task",
    table=TABLE,
    fields=FIELDS,
    example_id=EXAMPLE_TASK_ID,
    search=("title", "description"),
    member_rules=due.RULES,
    computed=(
        due.DUE_AT,
        ComputedColumn("label_keys", ("labels",), label_keys),
    ),
    derivations={
        "completed_at": (
            # OLD.completed: a task that the version before `completed_at` has completed.
            "CASE WHEN NEW.completed THEN coalesce(NEW.completed_at,"
            " CASE WHEN OLD.completed THEN OLD.updated_at END, NEW.updated_at) END"
        ),
        "due_sort": due.DERIVATION,
        "place": places.PLACE_DERIVATION,
        "position": DERIVATION,
    },
    complete_filters=complete_filters,
    sort_needs={"position": ("list_id", "parent_id")},
    counted_by=("list_id",),
    raised=places.RAISED,
    conflicts=places.CONFLICTS,
    statements_type=places.TaskStatements,
    more_filters={**due.due_filters(TABLE), **place_filters(TABLE)},
    more_sort_keys={"due": due.due_sort_key(TABLE)},
)
