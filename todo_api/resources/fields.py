"""Declare a member once: its column, schemas, filters and sort key are made from its `Field`.

A `Field` is a plain value. The statements and schemas of a `Resource` are built from its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import ColumnElement

    from todo_api.resources.types import FieldType


@dataclass(frozen=True, kw_only=True)
class Field:
    """A member of a resource.

    `default` is the value if a POST does not have the member, or if a PATCH has null. A `required`
    member has no default. A PUT or PATCH without the member keeps its value. A member that
    `is_read_only` is never in a POST, and is ignored in a PUT or PATCH.

    `absent` is what a POST without the member writes, if that is not the default.

    `is_in_example` is false if the examples of a POST and PATCH do not have the member.

    `adjust` changes the value that an UPDATE writes. Its arguments are the column, the sent value,
    and the values of all fields after the UPDATE.
    """

    name: str
    type: FieldType
    description: str
    example: Any
    required: bool = False
    nullable: bool = False
    default: Any = None
    is_reset_by_null: bool = True
    is_filterable: bool = False
    is_sortable: bool = False
    is_read_only: bool = False
    absent: Any = None
    is_in_example: bool = True
    adjust: Callable[[Column[Any], ColumnElement[Any], Mapping[str, Any]], Any] | None = None

    def column(self) -> Column[Any]:
        """Return a new column for a table."""
        default = self.default
        if isinstance(default, bool | int):
            default = text(str(default).lower())
        elif isinstance(default, list | dict):
            default = "{}"  # an empty array or an empty object
        return Column(
            self.name, self.type.column_type, nullable=self.nullable, server_default=default
        )

    @property
    def is_nullable_in_patch(self) -> bool:
        """Whether a PATCH may have null, which sets the default."""
        return self.nullable or (self.is_reset_by_null and not self.required)

    def options(self) -> dict[str, Any]:
        """Return the options that both marshmallow fields have: of requests and of responses."""
        metadata = {"description": self.description, "example": self.example}
        return {"metadata": metadata, "allow_none": self.nullable}
