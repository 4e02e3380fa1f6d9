"""The members of a task that clients write. docs/development.md says how to add one."""

from todo_api.db.tables import metadata
from todo_api.resources.fields import Field
from todo_api.resources.resource import Resource, resource_table
from todo_api.resources.types import BooleanType, TextType

FIELDS = (
    Field(
        name="title",
        type=TextType(minimum=1, maximum=255, is_stripped=True),
        required=True,
        is_sortable=True,
        description="What is to be done. White space around it is stripped.",
        example="Buy oat milk",
    ),
    Field(
        name="description",
        type=TextType(maximum=10_000),
        nullable=True,
        description="More about it.",
        example="Two litres, the blue one",
    ),
    Field(
        name="completed",
        type=BooleanType(),
        default=False,
        is_filterable=True,
        description="Whether it is done.",
        example=False,
    ),
)

TASK = Resource(
    name="task",
    table=resource_table(
        metadata,
        "tasks",
        FIELDS,
        # A page of the list, newest first: of all tasks, and of the open or the completed ones.
        indexes=(("created_at", "id"), ("completed", "created_at", "id")),
    ),
    fields=FIELDS,
    example_id="019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21",
    search=("title", "description"),
)
