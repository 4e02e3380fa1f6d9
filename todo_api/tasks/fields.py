"""The members of a task that clients write. docs/development.md says how to add a member."""

from todo_api.db.tables import metadata
from todo_api.resources.fields import Field
from todo_api.resources.resource import Resource, resource_table
from todo_api.resources.types import BooleanType, EnumType, TextType

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
        description="Whether the task is done.",
        example=False,
    ),
    Field(
        name="priority",
        type=EnumType(values=("none", "low", "medium", "high")),
        default="none",
        is_filterable=True,
        is_sortable=True,
        description="How important the task is. Lists sort in the order none, low, medium, high.",
        example="high",
    ),
)

TASK = Resource(
    name="task",
    table=resource_table(
        metadata,
        "tasks",
        FIELDS,
        # For lists with the newest task first: of all tasks, and with a filter by `completed`.
        indexes=(("created_at", "id"), ("completed", "created_at", "id")),
    ),
    fields=FIELDS,
    example_id="019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21",
    search=("title", "description"),
)
