"""The schemas of a user and of a token's user."""

from marshmallow import Schema, fields, validate

from todo_api.resources.time_zones import TimeZone
from todo_api.web.fields import (
    EXAMPLE_REVISION,
    EXAMPLE_TIMESTAMP,
    EXAMPLE_USER_ID,
    ResponseSchema,
)

TIME_ZONE = "The IANA name of the time zone in which the user's days begin and end."


class Session(ResponseSchema):
    """The user and expiry of a token."""

    user_id = fields.UUID(
        required=True,
        metadata={"description": "The user's id in paths.", "example": EXAMPLE_USER_ID},
    )
    subject = fields.String(
        required=True,
        validate=validate.Length(1, 255),
        metadata={
            "description": "The user's identifier in the issuer's tokens, usually the claim `sub`.",
            "example": "auth0|5f7c8ec7",
        },
    )
    expires_at = fields.DateTime(
        required=True,
        metadata={"description": "When the token expires.", "example": EXAMPLE_TIMESTAMP},
    )


class UserPatch(Schema):
    """A JSON merge patch of a user."""

    time_zone = TimeZone(
        allow_none=True, metadata={"description": f"{TIME_ZONE} null sets the default, UTC."}
    )


def limit(description: str) -> fields.Nested:
    return fields.Nested(Limit, required=True, metadata={"description": description})


class Limit(ResponseSchema):
    """A limit, and how much of it is in use."""

    limit = fields.Integer(
        required=True,
        validate=validate.Range(1, 2**53 - 1),
        metadata={"description": "The maximum.", "example": 10000},
    )
    used = fields.Integer(
        required=True,
        validate=validate.Range(0, 2**53 - 1),
        metadata={"description": "How much is in use.", "example": 7},
    )


class Limits(ResponseSchema):
    """The limits of a user."""

    tasks = limit("The tasks that are not in the trash.")
    tasks_with_trash = limit("All tasks, with the trash.")
    lists = limit("The lists that are not in the trash.")
    lists_with_trash = limit("All lists, with the trash.")
    bytes = limit("The bytes of all tasks and lists as JSON, with the trash.")


class UserState(ResponseSchema):
    """A user."""

    user_id = fields.UUID(
        required=True,
        metadata={"description": "The user's id in paths.", "example": EXAMPLE_USER_ID},
    )
    revision = fields.Integer(
        required=True,
        validate=validate.Range(0, 2**53 - 1),
        metadata={
            "description": "The revision of the user's last change; 0 before the first one.",
            "example": EXAMPLE_REVISION,
        },
    )
    created_at = fields.DateTime(
        required=True,
        allow_none=True,
        metadata={
            "description": "When the user changed something for the first time.",
            "example": EXAMPLE_TIMESTAMP,
        },
    )
    time_zone = TimeZone(required=True, metadata={"description": TIME_ZONE})
    limits = fields.Nested(
        Limits, required=True, metadata={"description": "The user's limits, and what is in use."}
    )
