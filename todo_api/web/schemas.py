"""The schemas of problem details (RFC 9457)."""

from marshmallow import fields, validate

from todo_api.web.fields import ANYTHING, EXAMPLE_REQUEST_ID, ResponseSchema

FAULTS_SHOWN = 100  # the maximum in a response
FAULT_LENGTH = 1000  # characters


class Fault(ResponseSchema):
    """One fault of a request: its place and its description."""

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


class ProblemDetails(ResponseSchema):
    """Problem details (RFC 9457)."""

    type = fields.String(
        required=True,
        validate=validate.Length(1, 100),
        metadata={
            "description": "The kind of problem: the path of its page, which does not change.",
            "pattern": "^/problems/[a-z-]+$",
            "example": "/problems/invalid",
        },
    )
    title = fields.String(
        required=True,
        validate=validate.Length(1, 100),
        metadata={"description": "The HTTP status in words.", "example": "Unprocessable content"},
    )
    status = fields.Integer(
        required=True,
        validate=validate.Range(400, 599),
        metadata={"description": "The HTTP status code.", "example": 422},
    )
    detail = fields.String(
        required=True,
        validate=validate.Length(1, FAULT_LENGTH),
        metadata={
            "description": "What to do.",
            "example": "Correct each fault that the member `errors` lists.",
        },
    )
    instance = fields.String(
        required=True,
        validate=validate.Length(1, 128),
        metadata={
            "description": "The request id, which is also in the server's log.",
            "pattern": "^[A-Za-z0-9._-]+$",
            "example": EXAMPLE_REQUEST_ID,
        },
    )
    errors = fields.List(
        fields.Nested(Fault),
        validate=validate.Length(1, FAULTS_SHOWN),
        metadata={"description": "The faults of the request, at most 100."},
    )


class ConflictDetails(ProblemDetails):
    """Problem details of a 409."""

    limit = fields.Integer(
        validate=validate.Range(1, 2**53 - 1),
        metadata={
            "description": "Only for `/problems/quota`: the limit that would be exceeded.",
            "example": 500,
        },
    )
    used = fields.Integer(
        validate=validate.Range(0, 2**53 - 1),
        metadata={
            "description": "Only for `/problems/quota`: how much of the limit is in use.",
            "example": 500,
        },
    )
