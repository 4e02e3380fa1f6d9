"""The schema of the response of `GET /api/session`."""

from marshmallow import fields, validate

from todo_api.web.fields import TIMESTAMP, USER_ID, ResponseSchema


class Session(ResponseSchema):
    """The user and expiry of a token."""

    user_id = fields.UUID(
        required=True,
        metadata={"description": "The user's id in paths.", "example": USER_ID},
    )
    subject = fields.String(
        required=True,
        validate=validate.Length(1, 255),
        metadata={
            "description": "The user's name in the issuer's tokens, usually the claim `sub`.",
            "example": "auth0|5f7c8ec7",
        },
    )
    expires_at = fields.DateTime(
        required=True, metadata={"description": "When the token expires.", "example": TIMESTAMP}
    )
