"""Marshmallow fields for the values that requests carry, as strict as the contract.

JSON has types, so body fields convert nothing: `1` is not a boolean, `"1"` is not an integer. A
query has text only, so the fields of its parameters accept one spelling of each value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE_LIMIT = 200
PAGE_DEFAULT = 100

UUID_TEXT = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# RFC 3339's date-time (section 5.6). The offset is required, so the value is an instant.
DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)

# Patterns for the OpenAPI document.
OPAQUE = "^[A-Za-z0-9_-]+$"  # cursors and tokens that the server made
ANYTHING = r"^[\s\S]*$"  # any text, including U+0000
# Text that has not only white space. Each character of Python's white space is listed, because \s
# matches other characters in other languages.
WHITE_SPACE = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_BLANK = rf"^[{WHITE_SPACE}]*[^{WHITE_SPACE}\x00][^\x00]*$"

# Examples for the OpenAPI document.
USER_ID = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
TIMESTAMP = "2026-11-21T09:30:00.000000Z"
REVISION = 1763717400000000
ITEM_ID = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
REQUEST_ID = "019aa5c8-7d10-7a44-8f0e-53d1f3a1b7c2"


class StrictText(fields.String):
    """Text, kept as it was sent, without characters that PostgreSQL or UTF-8 cannot hold."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:  # noqa: ARG002
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if "\x00" in value:
            raise ValidationError("The character U+0000 is not allowed.")
        if LONE_SURROGATE.search(value):
            raise ValidationError("A lone surrogate is not a character.")
        return value


class StrippedText(StrictText):
    """Text without the white space around it."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, *args, **kwargs).strip()


class StrictBoolean(fields.Boolean):
    """JSON's `true` or `false`."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:  # noqa: ARG002
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class StrictInteger(fields.Integer):
    """A JSON number without a fraction."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ARG002
        if type(value) is not int:
            raise self.make_error("invalid", input=value)
        return value


class StrictUUID(fields.UUID):
    """A UUID (RFC 9562) of any version, in its canonical text form, in either case."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> UUID:  # noqa: ARG002
        if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
            raise ValidationError("Must be a UUID.")
        return UUID(value)


class Anything(fields.Raw):
    """Any JSON value, which is not used."""


class ResponseSchema(Schema):
    """The schema of a response. Clients ignore members that they do not know."""

    class Meta:
        unknown = EXCLUDE


@dataclass(frozen=True)
class SchemaUnion:
    """Schemas with a common name in the OpenAPI document. A constant member differs among them."""

    name: str
    schemas: tuple[type[Schema], ...]

    @property
    def first(self) -> type[Schema]:
        return self.schemas[0]


class OneOfSchemas(fields.Field[Any]):
    """An object of one of these schemas, for the documentation of responses. It loads nothing.

    `schemas` has each schema under the value that its member `discriminator` has.
    """

    def __init__(
        self,
        discriminator: str,
        schemas: Mapping[str, type[Schema] | SchemaUnion],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.discriminator = discriminator
        self.schemas = schemas

    @property
    def first(self) -> type[Schema] | SchemaUnion:
        return next(iter(self.schemas.values()))


class BooleanParameter(fields.Boolean):
    """`true` or `false`, as text."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:  # noqa: ARG002
        if value not in ("true", "false"):
            raise ValidationError("Must be true or false.")
        return bool(value == "true")


class IntegerParameter(fields.Integer):
    """ASCII digits, as text, with a sign if it is negative."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ARG002
        if not re.fullmatch("-?[0-9]{1,18}", value):
            raise ValidationError("Must be a whole number.")
        return int(value)


class DateTimeParameter(fields.DateTime):
    """A date-time (RFC 3339), as text."""

    def __init__(self, description: str) -> None:
        metadata = {
            "description": description,
            "pattern": f"^{DATE_TIME.pattern}$",
            "example": "2026-11-21T09:30:00Z",
        }
        super().__init__(metadata=metadata)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:  # noqa: ARG002
        try:
            if DATE_TIME.fullmatch(value):
                return datetime.fromisoformat(value.upper())
        except ValueError:  # the 30th of February
            pass
        # In a query, + stands for a space.
        if " " in value and DATE_TIME.fullmatch(value.replace(" ", "+")):
            raise ValidationError(
                "Must be a date-time of RFC 3339: write the + of its offset as %2B, like"
                " 2026-11-21T09:30:00%2B02:00."
            )
        raise ValidationError("Must be a date-time of RFC 3339, like 2026-11-21T09:30:00Z.")


def limit_parameter(plural: str) -> IntegerParameter:
    """Return the parameter for the size of a page; `plural` names its items."""
    return IntegerParameter(
        load_default=PAGE_DEFAULT,
        validate=validate.Range(1, PAGE_LIMIT, error="Must be {min} to {max}."),
        metadata={"description": f"How many {plural} a page has at most.", "example": 20},
    )
