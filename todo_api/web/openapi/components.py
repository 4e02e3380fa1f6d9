"""Components of the OpenAPI document that operations refer to: headers and error responses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
from marshmallow import fields

from todo_api.db.tables import KEY_LENGTH
from todo_api.web.conditional import ENTITY_TAGS, REVISION, TAGS_LENGTH, etag
from todo_api.web.fields import ITEM_ID, REQUEST_ID, USER_ID, OneOfSchemas
from todo_api.web.idempotency import KEY
from todo_api.web.openapi.schemas import example_of, string_schema
from todo_api.web.problems import (
    DETAIL_OF_STATUS,
    KIND_OF_STATUS,
    Problem,
    bug,
    conflict,
    gone,
    invalid,
    malformed,
    not_acceptable,
    not_found,
    precondition_failed,
    precondition_required,
    unauthorized,
    unavailable,
    unsupported_media_type,
)
from todo_api.web.requests import WELL_FORMED
from todo_api.web.responses import JSON, MERGE_PATCH, PROBLEM, PUBLIC
from todo_api.web.schemas import ProblemDetails

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
            "Only if the task is one of these versions, or with `*` any (RFC 9110, 13.1.1).",
            etag(7),
        ),
        (
            "If-None-Match",
            "Only if it is none of these versions, or with `*` not there (RFC 9110, 13.1.2).",
            etag(8),
        ),
    )
} | {
    "Idempotency-Key": {
        "description": (
            "What marks requests as one and the same, sent again: of one's own making, and new for "
            "each task, such as a UUID."
        ),
        "schema": string_schema(KEY, 2 * KEY_LENGTH + 2, REQUEST_ID),
    },
}

# Of responses.
RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "Accept-Patch": {
        "description": "The media types that PATCH takes here (RFC 5789); sent for a PATCH only.",
        "schema": string_schema(
            re.compile("[a-z+/-]+(?:, [a-z+/-]+)*"), 200, f"{MERGE_PATCH}, {JSON}"
        ),
    },
    "Cache-Control": {
        "description": "Whether the answer may be kept. What is private must be revalidated.",
        "schema": {"type": "string", "enum": ["private, no-cache", "no-store", PUBLIC]},
    },
    "ETag": {
        "description": "The version of what is answered, for If-Match and If-None-Match.",
        "schema": string_schema(re.compile(f'"{REVISION.pattern}"'), 64, etag(7)),
    },
    "Idempotent-Replayed": {
        "description": "That this is the answer to an earlier request of the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Link": {
        "description": "Where the next page is, if there is one (RFC 8288): a relative reference.",
        "schema": string_schema(
            re.compile(r'</api/[^<>\s]+>; rel="next"'),
            8000,
            f'</api/{USER_ID}/tasks?limit=100&cursor=Wzcs>; rel="next"',
        ),
    },
    "Location": {
        "description": "Where the new task is, or where a redirect goes: a relative reference.",
        "schema": {
            "type": "string",
            "format": "uri-reference",
            "maxLength": 200,
            "examples": [f"/api/{USER_ID}/tasks/{ITEM_ID}"],
        },
    },
    "Retry-After": {
        "description": "In how many seconds to try again.",
        "schema": {
            "type": "integer",
            "format": "int32",
            "minimum": 1,
            "maximum": 3600,
            "examples": [1],
        },
    },
    "WWW-Authenticate": {
        "description": "How to say who you are, and why this would not do (RFC 6750, section 3).",
        "schema": string_schema(
            re.compile('Bearer(?: error="[a-z_]+")?'), 64, 'Bearer error="invalid_token"'
        ),
    },
    "X-Request-Id": {
        "description": "The id of the request, under which the server's log has it.",
        "schema": string_schema(WELL_FORMED, 128, REQUEST_ID),
    },
}

EVERY_HEADER = ("Cache-Control", "X-Request-Id")


def add_components(components: Components, items: Sequence[type[Schema]]) -> None:
    """Register all components; the document has those that an operation refers to.

    `items` are the schemas of the resources, one of which a 412 holds.
    """
    for name, header in RESPONSE_HEADERS.items():
        components.header(name, header, lazy=True)
    for name, parameter in REQUEST_HEADERS.items():
        components.parameter(name, "header", parameter, lazy=True)
    for name, response in error_responses(items).items():
        components.response(name, response, lazy=True)


def error_component(status: int) -> str:
    """Return the name of the component that documents this error status."""
    return f"Problem{status}"


def error_responses(items: Sequence[type[Schema]]) -> dict[str, dict[str, Any]]:
    """Return the response objects of the statuses of 400 and above, by component."""
    options: dict[str, Any] = {
        "required": True,
        "metadata": {"description": "What to go on from: its ETag is sent, too."},
    }
    current: fields.Field[Any] = (
        fields.Nested(items[0], **options) if len(items) == 1 else OneOfSchemas(*items, **options)
    )
    with_current = ProblemDetails.from_dict({"current": current}, name="ProblemWithCurrent")
    example = orjson.dumps(example_of(items[0]))
    return {
        error_component(problem.status): {
            "description": KIND_OF_STATUS[problem.status][1],
            "headers": {name: name for name in (*EVERY_HEADER, *problem.headers)},
            "content": {
                PROBLEM: {
                    "schema": with_current if problem.current else ProblemDetails,
                    "example": orjson.loads(problem.body(REQUEST_ID)),
                }
            },
        }
        for problem in example_problems(example)
    }


def example_problems(current: bytes) -> Iterator[Problem]:
    """Yield an example of each problem; `current` is the JSON in a 412."""
    yield from (
        malformed("The body is not JSON: Expecting value at character 0."),
        unauthorized("The token has expired.", 'Bearer error="invalid_token"'),
        not_found(),
        not_acceptable(JSON),
        conflict("not-in-trash", "It is not in the trash."),
        gone(),
        precondition_failed(current, etag(7)),
        Problem(413, DETAIL_OF_STATUS[413]),
        unsupported_media_type([JSON], "PATCH"),
        invalid([{"pointer": "/title", "detail": "Must have 1 to 255 characters."}]),
        precondition_required(),
        bug(),
        unavailable("The database takes no connections. Try again."),
    )
