"""The components of the OpenAPI document: headers and error responses."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from marshmallow import fields

from todo_api.db.tables import IDEMPOTENCY_KEY_LENGTH
from todo_api.web.conditional import ENTITY_TAGS, SERVER_TAG, TAGS_LENGTH, etag
from todo_api.web.fields import (
    EXAMPLE_REQUEST_ID,
    EXAMPLE_REVISION,
    EXAMPLE_TASK_ID,
    EXAMPLE_USER_ID,
)
from todo_api.web.idempotency import KEY
from todo_api.web.openapi.schemas import example_of, string_schema
from todo_api.web.problem_kinds import KINDS, KINDS_BY_STATUS
from todo_api.web.problems import (
    Problem,
    conflict,
    gone,
    internal_error,
    invalid,
    malformed,
    not_acceptable,
    not_found,
    precondition_failed,
    precondition_required,
    problem_of_status,
    unauthorized,
    unavailable,
    unsupported_media_type,
)
from todo_api.web.requests import REQUEST_ID_PATTERN
from todo_api.web.responses import JSON, MERGE_PATCH, PROBLEM, PUBLIC
from todo_api.web.schemas import ConflictDetails, ProblemDetails

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from apispec.core import Components
    from marshmallow import Schema

REQUEST_HEADERS = {
    name: {
        "description": description,
        "schema": string_schema(ENTITY_TAGS, TAGS_LENGTH, example),
    }
    for name, description, example in (
        (
            "If-Match",
            (
                "The resource must have one of these ETags; with `*`, it must exist "
                "(RFC 9110, 13.1.1)."
            ),
            etag(EXAMPLE_REVISION),
        ),
        (
            "If-None-Match",
            (
                "The resource must have none of these ETags; with `*`, it must not exist "
                "(RFC 9110, 13.1.2)."
            ),
            etag(EXAMPLE_REVISION),
        ),
    )
} | {
    "Idempotency-Key": {
        "description": (
            "A unique key that the client makes for each new task or list, such as a UUID. A "
            "repeated request has the same key."
        ),
        "schema": string_schema(KEY, 2 * IDEMPOTENCY_KEY_LENGTH + 2, EXAMPLE_REQUEST_ID),
    },
}

RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "Accept-Patch": {
        "description": "The media types that PATCH accepts on this path (RFC 5789).",
        "schema": string_schema(
            re.compile("[a-z+/-]+(?:, [a-z+/-]+)*"), 200, f"{MERGE_PATCH}, {JSON}"
        ),
    },
    "Cache-Control": {
        "description": "Whether the client may store the response, and must revalidate it.",
        "schema": {"type": "string", "enum": ["private, no-cache", "no-store", PUBLIC]},
    },
    "ETag": {
        "description": "The entity tag of the response, for If-Match and If-None-Match.",
        "schema": string_schema(re.compile(f'"{SERVER_TAG.pattern}"'), 64, etag(EXAMPLE_REVISION)),
    },
    "Idempotent-Replayed": {
        "description": "This is the response to an earlier request with the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Link": {
        "description": "The path and query of the next page, if there is one (RFC 8288).",
        "schema": string_schema(
            re.compile(r'</api/[^<>\s]+>; rel="next"'),
            8000,
            f'</api/{EXAMPLE_USER_ID}/tasks?limit=100&cursor=Wzcs>; rel="next"',
        ),
    },
    "Location": {
        "description": "The path of the new resource, or the target of a redirect.",
        "schema": {
            "type": "string",
            "format": "uri-reference",
            "maxLength": 200,
            "examples": [f"/api/{EXAMPLE_USER_ID}/tasks/{EXAMPLE_TASK_ID}"],
        },
    },
    "Retry-After": {
        "description": "The seconds to wait before the request is sent again.",
        "schema": {
            "type": "integer",
            "format": "int32",
            "minimum": 1,
            "maximum": 3600,
            "examples": [1],
        },
    },
    "WWW-Authenticate": {
        "description": "How to authenticate, and why a token was refused (RFC 6750, section 3).",
        "schema": string_schema(
            re.compile('Bearer(?: error="[a-z_]+")?'), 64, 'Bearer error="invalid_token"'
        ),
    },
    "X-Request-Id": {
        "description": "The id of the request, which is also in the server's log.",
        "schema": string_schema(REQUEST_ID_PATTERN, 128, EXAMPLE_REQUEST_ID),
    },
}

# The headers of every response.
EVERY_HEADER = ("Cache-Control", "X-Request-Id")


def add_components(components: Components, items: Sequence[type[Schema]]) -> None:
    """Register all components. The document contains only those that an operation refers to.

    `items` are the schemas of the resources.
    """
    for name, header in RESPONSE_HEADERS.items():
        components.header(name, header, lazy=True)
    for name, parameter in REQUEST_HEADERS.items():
        components.parameter(name, "header", parameter, lazy=True)
    for name, response in error_responses(items).items():
        components.response(name, response, lazy=True)


def error_component(status: int, current_schema: type[Schema] | None = None) -> str:
    """Return the name of the component that documents this error status.

    `current_schema` is the schema of the member `current` in a 412.
    """
    if current_schema is None or status != HTTPStatus.PRECONDITION_FAILED:
        return f"Problem{status}"
    return f"Problem{status}{current_schema.__name__}"


def error_responses(items: Sequence[type[Schema]]) -> dict[str, dict[str, Any]]:
    """Return the response objects of the statuses of 400 and above, by component."""
    responses = {
        error_component(problem.status): error_response(
            problem, ConflictDetails if problem.status == HTTPStatus.CONFLICT else ProblemDetails
        )
        for problem in example_problems()
    }
    for item in items:
        description = "The resource as it is now. The header ETag has its entity tag."
        current = fields.Nested(item, required=True, metadata={"description": description})
        schema = ProblemDetails.from_dict(
            {"current": current}, name=f"{item.__name__}PreconditionFailed"
        )
        problem = precondition_failed(orjson.dumps(example_of(item)), etag(EXAMPLE_REVISION))
        responses[error_component(problem.status, item)] = error_response(problem, schema)
    return responses


def error_response(problem: Problem, schema: type[Schema]) -> dict[str, Any]:
    """Return the response object that has this problem as its example."""
    types = [f"`{kind.type}`" for kind in KINDS if kind.status == problem.status]
    return {
        "description": f"{problem.title}: {', '.join(types)}" if types[1:] else problem.title,
        "headers": {name: name for name in (*EVERY_HEADER, *problem.headers)},
        "content": {
            PROBLEM: {"schema": schema, "example": orjson.loads(problem.body(EXAMPLE_REQUEST_ID))}
        },
    }


def example_problems() -> Iterator[Problem]:
    """Yield an example of each problem except the 412, with its headers."""
    yield from (
        malformed(KINDS_BY_STATUS[400].detail),
        unauthorized(KINDS_BY_STATUS[401].detail, 'Bearer error="invalid_token"'),
        not_found(),
        not_acceptable(JSON),
        conflict("in-trash"),
        gone(),
        problem_of_status(413),
        problem_of_status(414),
        unsupported_media_type([JSON], "PATCH"),
        invalid(KINDS_BY_STATUS[422].errors),
        precondition_required(),
        internal_error(),
        unavailable(KINDS_BY_STATUS[503].detail),
    )
