"""The OpenAPI document: what it says of every operation alike, derived from what each declares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import orjson
from apispec.ext.marshmallow import MarshmallowPlugin
from flask_smorest.spec.plugins import FlaskPlugin
from marshmallow import Schema, fields

from todo_api.db.tables import KEY_LENGTH
from todo_api.web.conditional import ENTITY_TAGS, REVISION, TAGS_LENGTH, etag
from todo_api.web.fields import ITEM_ID, REQUEST_ID, USER_ID, OneOfSchemas
from todo_api.web.idempotency import KEY
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
from todo_api.web.responses import CREATED, JSON, MERGE_PATCH, NO_CONTENT, NOT_MODIFIED, OK, PROBLEM
from todo_api.web.schemas import ProblemDetails

if TYPE_CHECKING:
    from collections.abc import Iterator, KeysView, Sequence

    from apispec import APISpec


DESCRIPTION = """\
A todo backend in which every user owns tasks, and sees no other's.

**Who you are.** Send a token as `Authorization: Bearer TOKEN`; `GET /api/session` tells the
`user_id` that it is for. A path of any other user is 404, whether or not that user exists.

**Sending again.** PUT, PATCH and DELETE can be sent again as they are. A POST that creates takes an
`Idempotency-Key`: sent again with the same one, it gets the first one's answer, marked by
`Idempotent-Replayed: true`, and creates nothing. An answer of 503 asks for that, after
`Retry-After` seconds.

**Safe editing.** A task's `ETag` goes into `If-Match`: where the task has changed meanwhile, the
answer is 412, with the task as it is now in `current`. `If-None-Match` makes an unchanged read 304.

**Errors** are problem details (RFC 9457), as `application/problem+json`. Nothing is ignored in
silence: an unknown field, or an unknown or repeated query parameter, is 422 and named in `errors`.
A method that a path does not know is 405, with `Allow`.

Every answer has an `X-Request-Id`: the one that was sent, if it is of 1 to 128 letters, digits,
`.`, `_` and `-`; else one that the server made.
"""


OPENAPI = {
    "API_TITLE": "Todo API",
    "API_VERSION": version("todo-api"),
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {
            "description": DESCRIPTION,
            "contact": {"name": "The todo-api authors"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [
            {
                "url": "/",
                "description": "Where this document comes from, be it local or production.",
                "x-internal": False,
            },
            {
                "url": "https://{host}",
                "description": "A production server of yours.",
                "x-internal": False,
                "variables": {
                    "host": {"default": "todo.internal", "description": "Its name, and port."}
                },
            },
        ],
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": (
                        "A JSON Web Token of the issuer that the server trusts (RFC 7519), "
                        "verified as RFC8725 has it."
                    ),
                }
            }
        },
    },
}


# Any text of ours; U+0000 is what PostgreSQL cannot hold.
TEXT = r"^[^\u0000]*$"


LENGTHS_OF_FORMAT = {"uuid": (36, 36), "date-time": (20, 32)}


def documented(converter: Any, field: fields.Field[Any], ret: dict[str, Any]) -> dict[str, Any]:
    """A hook of apispec for a field: the bounds that follow from its type, its example for 3.1.

    Of JSON Schema's `examples`, the page fills in none: what one tries is what one has typed.
    """
    more: dict[str, Any] = {}
    if "example" in ret:
        more["examples"] = [ret.pop("example")]
    if isinstance(field, OneOfSchemas):
        more["oneOf"] = [converter.resolve_nested_schema(shape) for shape in field.schemas]
    if "integer" in ret.get("type", ()):
        more["format"] = "int64"
    if "string" in ret.get("type", ()) and "enum" not in ret:
        if "format" not in ret:
            more["pattern"] = ret.get("pattern", TEXT)
        elif ret["format"] in LENGTHS_OF_FORMAT:
            more["minLength"], more["maxLength"] = LENGTHS_OF_FORMAT[ret["format"]]
    return more


class Shapes(MarshmallowPlugin):
    """apispec's own, with `documented`."""

    def init_spec(self, spec: APISpec) -> None:
        super().init_spec(spec)
        assert self.converter is not None  # noqa: S101  init_spec makes it
        self.converter.add_attribute_function(documented)  # type: ignore[no-untyped-call]


class Rules(FlaskPlugin):
    """flask-smorest's own, with an operationId, and with what a path's ids are."""

    def rule_to_params(self, rule: Any) -> list[dict[str, Any]]:
        return [param | path_parameter(param["name"]) for param in super().rule_to_params(rule)]

    def path_helper(self, rule: Any, operations: dict[str, Any], **kwargs: Any) -> Any:
        for operation in operations.values():
            operation["operationId"] = camel_case(rule.endpoint.rpartition(".")[2])
        return super().path_helper(rule=rule, operations=operations, **kwargs)


def camel_case(name: str) -> str:
    """As clients write the names of what they call."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def path_parameter(name: str) -> dict[str, Any]:
    """Return what the document says of an id in a path: `user_id`, or that of a resource."""
    is_user = name == "user_id"
    of_resource = f"Which {name.removesuffix('_id')}."
    return {
        "description": "Whose data: the user of the token." if is_user else of_resource,
        "schema": {
            "type": "string",
            "format": "uuid",
            "minLength": 36,
            "maxLength": 36,
            "examples": [USER_ID if is_user else ITEM_ID],
        },
    }


def text(pattern: re.Pattern[str], most: int, example: str) -> dict[str, Any]:
    """The schema of a string that the whole pattern matches."""
    whole = f"^(?:{pattern.pattern})$"
    return {"type": "string", "pattern": whole, "maxLength": most, "examples": [example]}


REQUEST_HEADERS = {
    name: {
        "description": description,
        "schema": text(ENTITY_TAGS, TAGS_LENGTH, example),
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
        "schema": text(KEY, 2 * KEY_LENGTH + 2, REQUEST_ID),
    },
}


HEADERS: dict[str, dict[str, Any]] = {
    "Cache-Control": {
        "description": "Whether the answer may be kept. What may be, must be revalidated.",
        "schema": {"type": "string", "enum": ["private, no-cache", "no-store"]},
    },
    "ETag": {
        "description": "The version of what is answered, for If-Match and If-None-Match.",
        "schema": text(re.compile(f'"{REVISION.pattern}"'), 64, etag(7)),
    },
    "Idempotent-Replayed": {
        "description": "That this is the answer to an earlier request of the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Link": {
        "description": "Where the next page is, if there is one (RFC 8288): a relative reference.",
        "schema": text(
            re.compile(r'</api/[^<>\s]+>; rel="next"'),
            8000,
            f'</api/{USER_ID}/tasks?limit=100&cursor=Wzcs>; rel="next"',
        ),
    },
    "Location": {
        "description": "Where the new task is: a relative reference.",
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
        "schema": text(
            re.compile('Bearer(?: error="[a-z_]+")?'), 64, 'Bearer error="invalid_token"'
        ),
    },
    "X-Request-Id": {
        "description": "The id of the request, under which the server's log has it.",
        "schema": text(WELL_FORMED, 128, REQUEST_ID),
    },
}


EVERY_HEADER = ("Cache-Control", "X-Request-Id")


def example_of(shape: Any) -> Any:
    """A value of a schema, a field, or a dict of apispec's: made of its parts' examples."""
    match shape:
        case {"items": inner} | fields.List(inner=inner):
            return [example_of(inner)]
        case {"oneOf": [first, *_]} | OneOfSchemas(schemas=[first, *_]):
            return example_of(first)
        case fields.Nested(schema=schema):
            return example_of(schema)
        case fields.Field():
            return shape.metadata["example"]
        case Schema():
            return {name: example_of(field) for name, field in shape.fields.items()}
    return example_of(shape())


def example_problems(current: bytes) -> Iterator[Problem]:
    """Yield an example of each problem. One that no operation has is not in the document."""
    yield from (
        malformed("The body is not JSON: Expecting value at character 0."),
        unauthorized("The token has expired.", 'Bearer error="invalid_token"'),
        not_found(),
        not_acceptable(JSON),
        conflict("not-in-trash", "It is not in the trash."),
        gone(),
        precondition_failed(current, etag(7)),
        Problem(413, DETAIL_OF_STATUS[413]),
        unsupported_media_type([JSON]),
        invalid([{"pointer": "/title", "detail": "Must have 1 to 255 characters."}]),
        precondition_required(),
        bug(),
        unavailable("The database takes no connections. Try again."),
    )


def refusal(status: int) -> str:
    """The name of the component that documents this status."""
    return f"Problem{status}"


def refusals(items: Sequence[type[Schema]]) -> dict[str, dict[str, Any]]:
    """Return the responses of 400 and above, by component; a 412 holds one of `items`."""
    current: fields.Field[Any] = (
        fields.Nested(items[0]) if len(items) == 1 else OneOfSchemas(*items)
    )
    current.required = True
    current.metadata = {"description": "What to go on from: its ETag is sent, too."}
    with_current = ProblemDetails.from_dict({"current": current}, name="ProblemWithCurrent")
    example = orjson.dumps(example_of(items[0]))
    return {
        refusal(problem.status): {
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


@dataclass(frozen=True)
class Kind:
    """What decides what an operation may answer, beside what its view declares.

    Its path names a user; it wants a token; it heeds If-Match, or Idempotency-Key; it changes
    something; it has a body; it tells of pages.
    """

    of_user: bool
    secured: bool
    conditional: bool
    idempotent: bool
    changes: bool
    body: bool
    paged: bool

    def headers(self, status: int) -> dict[str, str]:
        """What a success of this status has, as component by name."""
        names = [
            *EVERY_HEADER,
            *(["ETag"] if self.of_user and status != NO_CONTENT else ()),
            *(["Location"] if status == CREATED else ()),
            *(["Idempotent-Replayed"] if self.idempotent and status == CREATED else ()),
            *(["Link"] if self.paged and status == OK else ()),
        ]
        return {name: name for name in names}

    def refusals(self, declared: KeysView[int]) -> set[int]:
        """The statuses of 400 and above."""
        return {
            *(declared & KIND_OF_STATUS.keys()),
            *(406, 422, 500),
            *((400, 412, 428) if self.conditional else ()),
            *((400,) if NOT_MODIFIED in declared or self.idempotent else ()),
            *((400, 413) if self.changes else ()),
            *((415,) if self.body else ()),
            *((404, 503) if self.of_user else ()),
            *((401, 503) if self.secured else ()),
        }


def complete(doc: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The operation with what follows from its kind: parameters, headers, refusals, examples."""
    content = doc.get("requestBody", {}).get("content", {})
    declared = doc.setdefault("responses", {})
    responses = {status: refusal(status) for status in kind.refusals(declared.keys())}
    shown = [*content.values()]
    for status in declared.keys() - responses.keys():
        responses[status] = declared[status] | {"headers": kind.headers(status)}
        shown += declared[status].get("content", {}).values()
    for body in shown:
        body["example"] = example_of(body["schema"])
    if MERGE_PATCH in content:
        content[JSON] = content[MERGE_PATCH]
    heeded = ["If-Match", "If-None-Match"] if kind.conditional else []
    if NOT_MODIFIED in declared:
        heeded = ["If-None-Match"]
    if kind.idempotent:
        heeded = ["Idempotency-Key"]
    return doc | {
        "parameters": [*doc.get("parameters", ()), *heeded],
        "responses": dict(sorted(responses.items())),
        "security": [{"bearer": []}] if kind.secured else [],
    }
