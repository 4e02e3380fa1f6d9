"""The shapes that go over the wire, one class each: they check requests and document answers."""

import re
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from todo_api.tables import DESCRIPTION_LENGTH, TITLE_LENGTH

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PAGE_LIMIT = 200

USER_ID = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
TASK_ID = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
MOMENT = "2026-11-21T09:30:00.000000Z"


class Characters(fields.String):
    """Text, kept as it was sent, without what PostgreSQL or UTF-8 cannot hold."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if "\x00" in value:
            raise ValidationError("The character U+0000 is not allowed.")
        if LONE_SURROGATE.search(value):
            raise ValidationError("A lone surrogate is not a character.")
        return value


class StrippedCharacters(Characters):
    """Characters without the white space around them."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, *args, **kwargs).strip()


class TrueOrFalse(fields.Boolean):
    """JSON's `true` or `false`, and nothing that resembles them."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class QueryBoolean(fields.Boolean):
    """`true` or `false`, as text."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise ValidationError("Must be true or false.")
        return bool(value == "true")


class QueryInteger(fields.Integer):
    """ASCII digits, as text: no sign, space or underscore."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if not re.fullmatch("[0-9]{1,18}", value):
            raise ValidationError("Must be a whole number.")
        return int(value)


TITLE: dict[str, Any] = {
    "validate": validate.Length(1, TITLE_LENGTH, error="Must have {min} to {max} characters."),
    "metadata": {
        "description": "What is to be done. White space around it is stripped.",
        "example": "Buy oat milk",
    },
}
DESCRIPTION: dict[str, Any] = {
    "allow_none": True,
    "validate": validate.Length(
        max=DESCRIPTION_LENGTH, error="Must have at most {max} characters."
    ),
    "metadata": {"description": "More about it.", "example": "Two litres, the blue one"},
}
COMPLETED: dict[str, Any] = {"metadata": {"description": "Whether it is done.", "example": False}}


class NewTask(Schema):
    """A task to create."""

    title = StrippedCharacters(required=True, **TITLE)
    description = Characters(load_default=None, **DESCRIPTION)
    completed = TrueOrFalse(load_default=False, **COMPLETED)


class TaskReplacement(Schema):
    """A task's new title and description; `completed` is kept unless given."""

    title = StrippedCharacters(required=True, **TITLE)
    description = Characters(load_default=None, **DESCRIPTION)
    completed = TrueOrFalse(**COMPLETED)


class TaskPatch(Schema):
    """A JSON merge patch (RFC 7396): only what is sent changes."""

    title = StrippedCharacters(**TITLE)
    description = Characters(**DESCRIPTION)
    completed = TrueOrFalse(**COMPLETED)


class Completion(Schema):
    """Whether a task is done. It sets, it never toggles."""

    completed = TrueOrFalse(load_default=True, **COMPLETED)


class Task(Schema):
    """A task, as PostgreSQL writes it."""

    id = fields.UUID(
        required=True, metadata={"description": "A UUIDv7, made by the server.", "example": TASK_ID}
    )
    user_id = fields.UUID(required=True, metadata={"description": "The owner.", "example": USER_ID})
    title = fields.String(required=True, **TITLE)
    description = fields.String(required=True, **DESCRIPTION)
    completed = fields.Boolean(required=True, **COMPLETED)
    created_at = fields.DateTime(
        required=True, metadata={"description": "When it was created, in UTC.", "example": MOMENT}
    )
    updated_at = fields.DateTime(
        required=True,
        metadata={"description": "When it was last changed, in UTC.", "example": MOMENT},
    )
    revision = fields.Integer(
        required=True,
        validate=validate.Range(1, 2**63 - 1),
        metadata={"description": "The owner's change number of its last change.", "example": 7},
    )


class TaskQuery(Schema):
    """Which of the user's tasks to list, and from where on."""

    completed = QueryBoolean(
        metadata={"description": "Only the completed tasks, or only the open ones."}
    )
    limit = QueryInteger(
        load_default=100,
        validate=validate.Range(1, PAGE_LIMIT, error="Must be {min} to {max}."),
        metadata={"description": "How many tasks a page has at most."},
    )
    cursor = fields.String(
        validate=validate.Length(1, 200),
        metadata={"description": "Where the page starts: from the `Link` of the one before."},
    )


class Fault(Schema):
    """One thing that is wrong with a request: where it is, and what."""

    pointer = fields.String(
        metadata={"description": "A JSON Pointer (RFC 6901) into the body.", "example": "/title"}
    )
    parameter = fields.String(
        metadata={"description": "A parameter of the path or the query.", "example": "limit"}
    )
    header = fields.String(metadata={"description": "A header field.", "example": "If-Match"})
    detail = fields.String(
        required=True,
        metadata={"description": "What is wrong.", "example": "Must have 1 to 255 characters."},
    )


class ProblemDetails(Schema):
    """Why a request failed (RFC 9457)."""

    type = fields.String(
        required=True,
        metadata={
            "description": "What kind of problem this is: a stable path.",
            "example": "/problems/invalid",
        },
    )
    title = fields.String(
        required=True,
        metadata={"description": "The kind in words.", "example": "A value breaks a rule"},
    )
    status = fields.Integer(
        required=True,
        validate=validate.Range(400, 599),
        metadata={"description": "The HTTP status code.", "example": 422},
    )
    detail = fields.String(
        required=True,
        metadata={"description": "What happened, and what to do.", "example": "See errors."},
    )
    instance = fields.String(
        required=True,
        metadata={
            "description": "The request id, which the server's log has too.",
            "example": "019aa5c8-7d10-7a44-8f0e-53d1f3a1b7c2",
        },
    )
    errors = fields.List(
        fields.Nested(Fault), metadata={"description": "Each thing that is wrong."}
    )


class Session(Schema):
    """Who a token is for."""

    user_id = fields.UUID(
        required=True,
        metadata={"description": "The id to use in paths.", "example": USER_ID},
    )
    subject = fields.String(
        required=True,
        validate=validate.Length(1, 255),
        metadata={"description": "Whom the issuer calls so.", "example": "auth0|5f7c8ec7"},
    )
    expires_at = fields.DateTime(
        required=True, metadata={"description": "When the token expires.", "example": MOMENT}
    )


class Status(Schema):
    """That something works."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata={"example": "ok"})
