"""The order that users give to items: the member `position`, and the request that moves an item.

A position is text that sorts by code point. A new item's position is made from its creation time,
so it comes last. A move computes one position between two neighbours (fractional indexing), by the
functions `order_key_...` of the migrations. If there is no room between them, all siblings whose
positions are long or begin alike get new positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from marshmallow import Schema, ValidationError, fields, validate, validates_schema
from sqlalchemy import Column, Text, Uuid, bindparam, exists, func, select, update

from todo_api.db.statement import ID, OWNER, compiled
from todo_api.resources.fields import Field
from todo_api.resources.items import change
from todo_api.resources.statements import precondition_holds
from todo_api.resources.types import PlainType, SortKey
from todo_api.web.fields import StrictUUID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy import ColumnElement, Table

    from todo_api.db.database import Database
    from todo_api.db.statement import Statement
    from todo_api.resources.items import ChangeResult, Item
    from todo_api.resources.statements import ConditionalChange
    from todo_api.web.conditional import Precondition

# A move fails with this SQLSTATE if there is no room between the neighbours: their positions are
# equal, or the new one would be too long.
NO_ROOM = "TD001"
POSITION_LENGTH = 100

# The target of a move: beside the item ANCHOR. If ANCHOR is NULL, `after` means the first place,
# and `before` the last one. If SIDE is NULL, the item moves to the end.
SIDE = bindparam("side", type_=Text)
ANCHOR = bindparam("anchor", type_=Uuid)

EXAMPLE_SIBLING_ID = "019aa5c8-7e52-7a60-b3c1-2d4e6f8a0b9c"

DERIVATION = "CASE WHEN NEW.position = '' THEN order_key_of(NEW.created_at) ELSE NEW.position END"


@dataclass(frozen=True)
class OrderKeyType(PlainType):
    """A position among the siblings of an item."""

    column_type = Text(collation="C")

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return fields.String(validate=validate.Length(1, POSITION_LENGTH), **options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return self.request_field(**options)

    def sort_key(self, column: Column[Any]) -> SortKey:
        return SortKey(column, Text(), str, self._checked, (str(column.name),))

    def _checked(self, value: Any) -> str:
        if not isinstance(value, str) or not value.isascii() or "\x00" in value:
            raise TypeError(value)
        return value


POSITION = Field(
    name="position",
    type=OrderKeyType(),
    default="",
    is_read_only=True,
    is_sortable=True,
    description=(
        "The place among its siblings: sort by `position`, by code point, and then by `id`. `move` "
        "changes it."
    ),
    example="8DmRSKAq0V",
)


class Move(Schema):
    """Where an item moves: to the end, unless `after` or `before` is sent."""

    # Only one of `after` and `before` can be sent.
    omitted_from_example: tuple[str, ...] = ("before",)

    after = StrictUUID(
        allow_none=True,
        metadata={
            "description": "The sibling behind which it moves; null means the first place.",
            "example": EXAMPLE_SIBLING_ID,
        },
    )
    before = StrictUUID(
        allow_none=True,
        metadata={
            "description": "The sibling in front of which it moves; null means the last place.",
            "example": EXAMPLE_SIBLING_ID,
        },
    )

    @validates_schema
    def refuse_two_places(self, data: dict[str, Any], **_: Any) -> None:
        if "after" in data and "before" in data:
            raise ValidationError("Send either after or before.", "before")


def require_position(position: ColumnElement[str]) -> ColumnElement[str]:
    """Return the position; the statement fails with NO_ROOM if it is NULL."""
    return func.require_position(position, type_=Text)


def renumber(table: Table, *is_sibling: ColumnElement[bool]) -> Statement:
    """Return a statement that makes room between the siblings: some get new positions.

    Their order stays. The statement leaves out the moved item, which changes afterwards. If another
    request has deleted the moved item meanwhile, or the precondition does not hold any more, the
    siblings keep their positions.
    """
    columns, root = table.c, table.alias("root").c
    is_moved = exists().where(
        root.user_id == OWNER,
        root.id == ID,
        root.deleted_at.is_(None),
        precondition_holds(root.revision),
    )
    order = (columns.position, columns.id)
    position = func.order_key_of_row(
        columns.position,
        func.row_number().over(order_by=order),
        func.lag(columns.position).over(order_by=order),
        func.lead(columns.position).over(order_by=order),
    )
    numbered = (
        select(columns.id, position.label("position"))
        .where(columns.user_id == OWNER, *is_sibling)
        .subquery("numbered")
    )
    return compiled(
        update(table)
        .where(
            columns.user_id == OWNER,
            columns.id == numbered.c.id,
            columns.position != numbered.c.position,
            columns.id != ID,
            is_moved,
        )
        .values(position=numbered.c.position)
    )


def place_parameters(move: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters SIDE and ANCHOR of the loaded body of a move."""
    side = next((side for side in ("after", "before") if side in move), None)
    return {"side": side, "anchor": move.get(side) if side else None}


def move_item(
    database: Database,
    owner: UUID,
    statements: ConditionalChange,
    with_new_positions: ConditionalChange,
    precondition: Precondition,
    parameters: Mapping[str, Any],
) -> ChangeResult:
    """Move the item, if the precondition holds.

    If there is no room between its new neighbours, the statements `with_new_positions` run, which
    also make room between the siblings. That is a second round trip.
    """

    def constant(_: Item | None) -> Mapping[str, Any]:
        return parameters

    try:
        return change(database, owner, statements, precondition, constant)
    except psycopg.DatabaseError as error:
        if error.sqlstate != NO_ROOM:
            raise
    return change(database, owner, with_new_positions, precondition, constant)
