"""The shapes that go over the wire, one class each: they check requests and document answers."""

import re
from datetime import datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from todo_api.tables import DESCRIPTION_LENGTH, TITLE_LENGTH

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
PAGE_LIMIT = 200
SORTS = ["created_at", "-created_at", "updated_at", "-updated_at", "title", "-title"]
CURSOR_LENGTH = 2000  # a title of 255 characters is in it, in base64
SINCE_LENGTH = 200
FAULTS_SHOWN = 100
FAULT_LENGTH = 1000

# RFC 3339's date-time (section 5.6), whose offset must be there: a moment, not a wall clock.
DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)

# What cursors.py writes.
OPAQUE = "^[A-Za-z0-9_-]+$"

# What a client has sent, U+0000 included.
ANYTHING = r"^[\s\S]*$"

# Something that is not white space, and no U+0000. The white space is Python's, spelled out: other
# languages mean other characters by \\s.
WHITE_SPACE = r"\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_BLANK = rf"^[{WHITE_SPACE}]*[^{WHITE_SPACE}\x00][^\x00]*$"

USER_ID = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
TASK_ID = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
MOMENT = "2026-11-21T09:30:00.000000Z"
REQUEST_ID = "019aa5c8-7d10-7a44-8f0e-53d1f3a1b7c2"


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


class Either(fields.Field[Any]):
    """One of these shapes. It documents answers, and loads nothing."""

    def __init__(self, *shapes: type[Schema]) -> None:
        super().__init__()
        self.shapes = shapes


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


class QueryMoment(fields.DateTime):
    """A date-time as RFC 3339 has it, as text."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        try:
            if DATE_TIME.fullmatch(value):
                return datetime.fromisoformat(value.upper())
        except ValueError:  # the 30th of February
            pass
        raise ValidationError("Must be a date-time of RFC 3339, like 2026-11-21T09:30:00Z.")


TITLE: dict[str, Any] = {
    "validate": validate.Length(1, TITLE_LENGTH, error="Must have {min} to {max} characters."),
    "metadata": {
        "description": "What is to be done. White space around it is stripped.",
        "pattern": NOT_BLANK,
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


class DeletedTask(Task):
    """A task in the trash."""

    deleted_at = fields.DateTime(
        required=True, metadata={"description": "When it was deleted.", "example": MOMENT}
    )
    purge_at = fields.DateTime(
        required=True,
        metadata={"description": "From when on it may be gone for good.", "example": MOMENT},
    )


# A page of a list, which is of live tasks or of the trash.
TASK_PAGE = {
    "type": "array",
    "maxItems": PAGE_LIMIT,
    "items": {"oneOf": [Task, DeletedTask]},
}


class ChangedTask(Task):
    """A task that has changed, as it is now."""

    deleted = fields.Boolean(
        required=True,
        validate=validate.Equal(False),  # noqa: FBT003  it is a value here
        metadata={"description": "It is not deleted.", "example": False},
    )


class Deletion(Schema):
    """That a task was deleted."""

    id = fields.UUID(required=True, metadata={"description": "The task.", "example": TASK_ID})
    revision = fields.Integer(
        required=True,
        validate=validate.Range(1, 2**63 - 1),
        metadata={"description": "The number of this change.", "example": 7},
    )
    deleted = fields.Boolean(
        required=True,
        validate=validate.Equal(True),  # noqa: FBT003  it is a value here
        metadata={"description": "It is deleted.", "example": True},
    )
    deleted_at = fields.DateTime(
        required=True, metadata={"description": "When that was, in UTC.", "example": MOMENT}
    )


class Changes(Schema):
    """A page of changes, in the order in which they were made."""

    changes = fields.List(
        Either(ChangedTask, Deletion),
        required=True,
        validate=validate.Length(max=PAGE_LIMIT),
        metadata={"description": "Each task that has changed, once, as it is now."},
    )
    next = fields.String(
        required=True,
        validate=validate.Length(1, SINCE_LENGTH),
        metadata={
            "description": "Where to go on: the next `since`.",
            "pattern": OPAQUE,
            "example": "WzcsbnVsbCxmYWxzZSxudWxsLGZhbHNlXQ",
        },
    )
    more = fields.Boolean(
        required=True,
        metadata={"description": "Whether to go on at once: this is not all.", "example": False},
    )


def limit() -> QueryInteger:
    return QueryInteger(
        load_default=100,
        validate=validate.Range(1, PAGE_LIMIT, error="Must be {min} to {max}."),
        metadata={"description": "How many tasks a page has at most.", "example": 20},
    )


def moment(description: str) -> QueryMoment:
    pattern = f"^{DATE_TIME.pattern}$"
    return QueryMoment(
        metadata={"description": description, "pattern": pattern, "example": "2026-11-21T09:30:00Z"}
    )


class ChangesQuery(Schema):
    """From where on to tell what has changed."""

    since = fields.String(
        required=True,
        validate=validate.Length(1, SINCE_LENGTH),
        metadata={
            "description": "`next` of the last page; a revision; or 0 for a full sync.",
            "pattern": OPAQUE,
            "example": "0",
        },
    )
    limit = limit()


class TaskQuery(Schema):
    """Which of the user's tasks to list, in which order, and from where on."""

    completed = QueryBoolean(
        metadata={
            "description": "Only the completed tasks, or only the open ones.",
            "example": False,
        }
    )
    q = Characters(
        validate=validate.Length(1, 100, error="Must have {min} to {max} characters."),
        metadata={
            "description": "Only tasks with this text in title or description, whatever the case.",
            "example": "milk",
        },
    )
    created_after = moment("Only tasks created after this moment.")
    created_before = moment("Only tasks created before this moment.")
    updated_after = moment("Only tasks last changed after this moment.")
    updated_before = moment("Only tasks last changed before this moment.")
    deleted = QueryBoolean(
        load_default=False, metadata={"description": "List the trash instead.", "example": False}
    )
    sort = fields.String(
        load_default="-created_at",
        validate=validate.OneOf(SORTS, error="Must be one of: {choices}."),
        metadata={
            "description": "What to sort by; - is for descending. Titles by code point.",
            "example": "title",
        },
    )
    limit = limit()
    cursor = fields.String(
        validate=validate.Length(1, CURSOR_LENGTH),
        metadata={
            "description": "Where the page starts: from the `Link` of the one before.",
            "pattern": OPAQUE,
            "example": "WyJCdXkiLCIwMTlhYTVjOCIsImZmIl0",
        },
    )


class Fault(Schema):
    """One thing that is wrong with a request: where it is, and what."""

    pointer = fields.String(
        validate=validate.Length(max=FAULT_LENGTH),
        metadata={
            "description": "A JSON Pointer (RFC 6901) into the body.",
            "pattern": ANYTHING,
            "example": "/title",
        },
    )
    parameter = fields.String(
        validate=validate.Length(max=FAULT_LENGTH),
        metadata={
            "description": "A parameter of the path or the query.",
            "pattern": ANYTHING,
            "example": "limit",
        },
    )
    header = fields.String(
        validate=validate.Length(max=FAULT_LENGTH),
        metadata={"description": "A header field.", "example": "If-Match"},
    )
    detail = fields.String(
        required=True,
        validate=validate.Length(1, FAULT_LENGTH),
        metadata={"description": "What is wrong.", "example": "Must have 1 to 255 characters."},
    )


class ProblemDetails(Schema):
    """Why a request failed (RFC 9457)."""

    type = fields.String(
        required=True,
        validate=validate.Length(1, 100),
        metadata={
            "description": "What kind of problem this is: a stable path.",
            "pattern": "^/problems/[a-z-]+$",
            "example": "/problems/invalid",
        },
    )
    title = fields.String(
        required=True,
        validate=validate.Length(1, 100),
        metadata={"description": "The kind in words.", "example": "A value breaks a rule"},
    )
    status = fields.Integer(
        required=True,
        validate=validate.Range(400, 599),
        metadata={"description": "The HTTP status code.", "example": 422},
    )
    detail = fields.String(
        required=True,
        validate=validate.Length(1, FAULT_LENGTH),
        metadata={"description": "What happened, and what to do.", "example": "See errors."},
    )
    instance = fields.String(
        required=True,
        validate=validate.Length(1, 128),
        metadata={
            "description": "The request id, which the server's log has too.",
            "pattern": "^[A-Za-z0-9._-]+$",
            "example": REQUEST_ID,
        },
    )
    errors = fields.List(
        fields.Nested(Fault),
        validate=validate.Length(1, FAULTS_SHOWN),
        metadata={"description": "Each thing that is wrong, up to a hundred."},
    )


class TaskNow(ProblemDetails):
    """Why a task was not changed, with the task as it is now."""

    current = fields.Nested(
        Task, required=True, metadata={"description": "What to go on from: its ETag is sent too."}
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
