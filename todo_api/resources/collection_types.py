"""The types of fields for arrays and objects of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from marshmallow import fields, validate
from sqlalchemy import Column, ColumnElement, Text, bindparam, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from todo_api.resources.fields import Field
from todo_api.resources.types import Filter, PlainType, Rule
from todo_api.web.collection_fields import Label, LabelSet, LabelsParameter, MergePatch, TextObject

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class LabelsType(PlainType):
    """At most `maximum` labels of at most `length` characters, sorted by code point.

    No two labels of an array are equal by case-folding.
    """

    maximum: int
    length: int

    column_type = ARRAY(Text)

    def label(self, **options: Any) -> Label:
        """Return the marshmallow field of one label."""
        return Label(self.length, **options)

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return LabelSet(self.label(), self.maximum, **options)

    def response_field(self, **options: Any) -> fields.Field[Any]:
        text = fields.String(validate=validate.Length(1, self.length))
        return fields.List(text, validate=validate.Length(max=self.maximum), **options)

    def rules(self, name: str) -> dict[str, Rule]:
        condition = f"cardinality({name}) <= {self.maximum}"
        return {"count": Rule(condition, f"Must have at most {self.maximum} labels.")}

    def filters(self, column: Column[Any], example: Any) -> dict[str, Filter]:
        def parameter(description: str) -> LabelsParameter:
            text = f"{description}, separated by commas."
            metadata = {"description": text, "example": ",".join(example)}
            return LabelsParameter(self.label(), self.maximum, metadata)

        every = bindparam("label", type_=ARRAY(Text))
        some = bindparam("label_any", type_=ARRAY(Text))
        return {
            "label": Filter(parameter("Only with all of these labels"), column.op("@>")(every)),
            "label_any": Filter(parameter("Only with one of these labels"), column.op("&&")(some)),
        }


@dataclass(frozen=True, kw_only=True)
class TextObjectType(PlainType):
    """An object of strings: the keys and values belong to the client.

    `maximum` limits the keys, the lengths are in characters.
    """

    maximum: int
    key_length: int
    value_length: int

    column_type = JSONB()

    def request_field(self, **options: Any) -> fields.Field[Any]:
        return TextObject(self.maximum, self.key_length, self.value_length, **options)

    def patch_field(self, **options: Any) -> fields.Field[Any]:
        return TextObject(
            self.maximum, self.key_length, self.value_length, is_patch=True, **options
        )

    def response_field(self, **options: Any) -> fields.Field[Any]:
        return self.request_field(**options)

    def rules(self, name: str) -> dict[str, Rule]:
        keys = f"jsonb_array_length(jsonb_path_query_array({name}, '$.*'))"
        return {
            "keys": Rule(f"{keys} <= {self.maximum}", f"Must have at most {self.maximum} keys.")
        }

    def new_value(self, column: Column[Any]) -> ColumnElement[Any]:
        """Return the patched object, or the new one if the patch is NULL."""
        patch = bindparam(f"patch_{column.name}", type_=JSONB)
        patched = column.op("||")(patch)
        return func.coalesce(func.jsonb_strip_nulls(patched), super().new_value(column))

    def parameters(self, name: str, value: Mapping[str, str | None]) -> dict[str, Any]:
        text = orjson.dumps(value).decode()
        if isinstance(value, MergePatch):
            return {f"new_{name}": None, f"patch_{name}": text}
        return {f"new_{name}": text, f"patch_{name}": None}


# A member that resources have in common.
METADATA = Field(
    name="metadata",
    type=TextObjectType(maximum=20, key_length=40, value_length=200),
    default={},
    description=(
        "Data of the client, which the server does not interpret. A PATCH changes single keys; "
        "null removes a key. A PUT replaces the whole object."
    ),
    example={"source": "mail"},
)
