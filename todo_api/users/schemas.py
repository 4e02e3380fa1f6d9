"""The schema of a session."""

from marshmallow import fields, validate

from todo_api.web.fields import TIMESTAMP, USER_ID, ResponseSchema


class Session(ResponseSchema):
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
        required=True, metadata={"description": "When the token expires.", "example": TIMESTAMP}
    )
