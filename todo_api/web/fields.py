"""Strict marshmallow fields for the values in requests.

Fields of a JSON body convert no types: `1` is not a boolean, and `"1"` is not an integer. A query
consists of text, so each value of a parameter has one allowed spelling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE_LIMIT = 200
PAGE_DEFAULT = 100

# The length of a query parameter that lists words.
WORDS_LENGTH = 200

UUID_TEXT = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

COLOR = re.compile("#[0-9a-fA-F]{6}")
INVALID_COLOR = "Must be a colour like #3366ff."

LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Patterns for the OpenAPI document.
OPAQUE = "^[A-Za-z0-9_-]+$"  # cursors and tokens that the server made
ANYTHING = r"^[\s\S]*$"  # any text, including U+0000
# Text with at least one character that is not white space. Python's white space is listed, because
# \s matches other characters in other programming languages.
WHITE_SPACE = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_BLANK = rf"^[{WHITE_SPACE}]*[^{WHITE_SPACE}\x00][^\x00]*$"

# Examples for the OpenAPI document.
EXAMPLE_USER_ID = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
EXAMPLE_TIMESTAMP = "2026-11-21T09:30:00.000000Z"
EXAMPLE_REVISION = 1795253400000000
EXAMPLE_TASK_ID = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
EXAMPLE_LIST_ID = "019aa5c8-5a10-7b3e-8c44-90d1e5f2a6b7"
EXAMPLE_REQUEST_ID = "019aa5c8-7d10-7a44-8f0e-53d1f3a1b7c2"


class StrictText(fields.String):
    """Text, unchanged, without characters that PostgreSQL or UTF-8 cannot represent."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:  # noqa: ARG002
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if "\x00" in value:
            raise ValidationError("The character U+0000 is not allowed.")
        if LONE_SURROGATE.search(value):
            raise ValidationError("A lone surrogate is not a character.")
        return value


class StrippedText(StrictText):
    """Text, from which white space at the start and end is removed."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, *args, **kwargs).strip()


class StrictBoolean(fields.Boolean):
    """JSON's `true` or `false`."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:  # noqa: ARG002
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class StrictInteger(fields.Integer):
    """A JSON number without a fraction, as 7 and 7.0 (JSON Schema Validation, section 6.1.1)."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ARG002
        if type(value) is float and value.is_integer():
            return int(value)
        if type(value) is not int:
            raise self.make_error("invalid", input=value)
        return value


class StrictUUID(fields.UUID):
    """A UUID (RFC 9562) of any version, in its canonical text form, in either case."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> UUID:  # noqa: ARG002
        if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
            raise ValidationError("Must be a UUID.")
        return UUID(value)


class Color(StrictText):
    """A colour as in HTML, `#rrggbb`. The result has lower-case digits."""

    def __init__(self, *, metadata: dict[str, Any], **options: Any) -> None:
        metadata = {**metadata, "pattern": f"^{COLOR.pattern}$", "minLength": 7, "maxLength": 7}
        super().__init__(metadata=metadata, **options)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:  # noqa: ARG002
        if not isinstance(value, str) or not COLOR.fullmatch(value):
            raise ValidationError(INVALID_COLOR)
        return value.lower()


class Anything(fields.Raw):
    """Any JSON value, because the server ignores the member."""


class ResponseSchema(Schema):
    """The schema of a response. Later versions may add members, so unknown members are allowed."""

    class Meta:
        unknown = EXCLUDE


@dataclass(frozen=True)
class SchemaUnion:
    """Schemas under one name in the OpenAPI document.

    One member has a fixed value, which is different in each schema.
    """

    name: str
    schemas: tuple[type[Schema], ...]

    @property
    def first(self) -> type[Schema]:
        return self.schemas[0]


class OneOfSchemas(fields.Field[Any]):
    """An object that matches one of several schemas, only for the documentation of responses.

    The keys of `schemas` are the values of the member `discriminator`.
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
    """ASCII digits, as text, with `-` before a negative number."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ARG002
        if not re.fullmatch("-?[0-9]{1,18}", value):
            raise ValidationError("Must be a whole number.")
        return int(value)


class WordsParameter(fields.String):
    """One or more of these words, separated by commas.

    The value is a list of the words, each once, in the order of `words`.
    """

    def __init__(self, words: Sequence[str], metadata: Mapping[str, Any]) -> None:
        word = f"(?:{'|'.join(words)})"
        pattern = {"pattern": f"^{word}(?:,{word})*$", "maxLength": WORDS_LENGTH}
        super().__init__(metadata={**metadata, **pattern})
        self.words = words

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        sent = set(value.split(","))
        if len(value) > WORDS_LENGTH or not sent <= set(self.words):
            detail = f"Must be one or more of {', '.join(self.words)}, separated by commas."
            raise ValidationError(detail)
        return [word for word in self.words if word in sent]


def limit_parameter(plural: str) -> IntegerParameter:
    """Return the parameter for the maximum number of items in a page, which `plural` names."""
    return IntegerParameter(
        load_default=PAGE_DEFAULT,
        validate=validate.Range(1, PAGE_LIMIT, error="Must be {min} to {max}."),
        metadata={"description": f"The maximum number of {plural} in a page.", "example": 20},
    )
