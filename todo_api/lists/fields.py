"""The members of a list of tasks."""

from __future__ import annotations

from todo_api.db.tables import metadata
from todo_api.resources.collection_types import METADATA
from todo_api.resources.fields import Field
from todo_api.resources.order import DERIVATION, POSITION
from todo_api.resources.resource import QUOTAS, MemberRule, Resource, resource_table
from todo_api.resources.types import BooleanType, ColorType, TextType
from todo_api.web.fields import EXAMPLE_LIST_ID

FIELDS = (
    Field(
        name="name",
        type=TextType(minimum=1, maximum=120, is_stripped=True),
        required=True,
        is_sortable=True,
        description=(
            "The name. White space at the start and end is removed. Two lists can have the same "
            "name."
        ),
        example="Groceries",
    ),
    Field(
        name="color",
        type=ColorType(),
        nullable=True,
        description="The colour in which clients show the list.",
        example="#3366ff",
    ),
    Field(
        name="archived",
        type=BooleanType(),
        default=False,
        is_filterable=True,
        description=(
            "Whether the list is archived. An archived list gets no new tasks, and `GET` of all "
            "tasks leaves out its tasks."
        ),
        example=False,
    ),
    POSITION,
    METADATA,
)

TABLE = resource_table(
    metadata, "lists", FIELDS, indexes=(("created_at", "id"), ("position", "id"))
)

# Ids that no list can have: in rows of tasks, they mean the Inbox and the list of the parent.
INBOX = "00000000-0000-0000-0000-000000000000"
LIST_OF_PARENT = "ffffffff-ffff-ffff-ffff-ffffffffffff"

NEIGHBOUR = "Must be the id of another list that is not in the trash."

LIST = Resource(
    name="list",
    table=TABLE,
    fields=FIELDS,
    example_id=EXAMPLE_LIST_ID,
    derivations={"position": DERIVATION},
    member_rules={
        "id_free": MemberRule(
            f"NEW.id NOT IN ('{INBOX}', '{LIST_OF_PARENT}')",
            {"id": "Must be another id: this one is reserved."},
        )
    },
    conflicts=QUOTAS,
    raised={"after_known": {"after": NEIGHBOUR}, "before_known": {"before": NEIGHBOUR}},
)
