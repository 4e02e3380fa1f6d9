"""Check requests before their view runs: media types, body, ids and parameters."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from marshmallow import ValidationError
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.routing import PathConverter, UnicodeConverter

from todo_api.web.body import read_json_body
from todo_api.web.fields import UUID_TEXT
from todo_api.web.operation import Operation, operation_of
from todo_api.web.problems import invalid, not_acceptable
from todo_api.web.requests import Request, current_request
from todo_api.web.responses import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flask import Flask
    from marshmallow import Schema
    from marshmallow.fields import Field

    from todo_api.web.problem_kinds import Fault


# The only path below /api that does not begin with a user's id.
SESSION_PATH = "/api/session"


# The names of JSON types in faults, for each type that `json.loads` returns, except dict.
JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
}


class IdConverter(UnicodeConverter):
    """Match any text except `session` and `count`.

    `/api/session` is not the path of a user, and `/tasks/count` is not the path of a task.
    `check_request` parses the UUID later, so that a malformed id is a 422 and not a 404.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regex = f"(?!(?:session|count)$){self.regex}"


class TextConverter(PathConverter):
    """Match any text, also with slashes, which servers decode before the route is found."""

    regex = "(?s:.+)"
    part_isolating = False


def load_body(schema: Schema) -> Any:
    """Load the body that `check_request` has read, by the schema. Raises a 422."""
    body = current_request().body
    if not isinstance(body, dict):
        detail = f"Must be an object, not {JSON_TYPES[type(body)]}."
        raise invalid([{"pointer": "", "detail": detail}])
    try:
        return schema.load(body)
    except ValidationError as error:
        messages = error.messages
    raise invalid({"pointer": pointer, "detail": text} for pointer, text in list_faults(messages))


def load_query(schema: Schema) -> Any:
    """Load the query by the schema. Raises a 422.

    `check_request` has checked the names of the parameters.
    """
    try:
        return dict(load_parameters(schema, tuple(current_request().args.items())))
    except ValidationError as error:
        messages = error.messages
    raise invalid(
        {"parameter": pointer[1:], "detail": text} for pointer, text in list_faults(messages)
    )


# A cache, because many requests have the same query, and loading ten parameters takes 20 us.
@lru_cache(maxsize=128)
def load_parameters(schema: Schema, query: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    parameters: dict[str, Any] = schema.load(dict(query))
    return parameters


def load_path_text(name: str, field: Field[Any], text: str) -> Any:
    """Return the value that the field loads from a part of the path. Raises a 422."""
    try:
        # WSGI has each byte of the path as a character (PEP 3333). Werkzeug replaces bytes that are
        # no UTF-8, so different texts would become the same.
        current_request().environ["PATH_INFO"].encode("latin-1").decode()
    except UnicodeDecodeError:
        raise invalid([{"parameter": name, "detail": "Must be UTF-8."}]) from None
    try:
        return field.deserialize(text)
    except ValidationError as error:
        messages = error.messages
    raise invalid({"parameter": name, "detail": detail} for _, detail in list_faults(messages))


def list_faults(messages: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Yield (JSON Pointer, message) for each message in marshmallow's tree (RFC 6901)."""
    if isinstance(messages, dict):
        for key, subtree in messages.items():
            # A key comes from the client and may contain lone surrogates.
            text = str(key).encode(errors="replace").decode()[:200]
            step = "/" + text.replace("~", "~0").replace("/", "~1")
            # marshmallow's key for the faults of the whole object. Other objects have free keys.
            is_whole = key == "_schema" and not pointer
            yield from list_faults(subtree, "" if is_whole else pointer + step)
    else:
        yield from ((pointer, str(message)) for message in messages)


def check_requests(app: Flask) -> None:
    """Check every request before its view runs."""
    app.before_request(partial(check_request, app.view_functions))


def check_request(views: Mapping[str, Callable[..., Any]]) -> None:
    """Make the checks that all operations need. Raises a 400, 406, 411, 413, 415 or 422.

    Sets `body` and `user_id` of the request, and converts the ids in the view's arguments to UUIDs.
    """
    request = current_request()
    if request.routing_exception or request.method == "OPTIONS":
        return
    operation = operation_of(views[request.endpoint or ""])
    accept = request.header("Accept")
    if operation.is_documented and accept and not is_acceptable(accept, operation.offers):
        raise not_acceptable(JSON)
    request.body = read_json_body(request, operation)
    arguments = request.view_args or {}
    errors: list[Fault] = []
    for name, text in arguments.items():
        if not name.endswith("_id"):
            continue
        if UUID_TEXT.fullmatch(text):
            arguments[name] = UUID(text)
        else:
            errors.append({"parameter": name, "detail": "Must be a UUID."})
    if request.query_string:
        errors += find_wrong_parameters(request, operation)
    if errors:
        raise invalid(errors)
    request.user_id = arguments.get("user_id", request.user_id)


# A cache, because a client program sends the same Accept header with each request.
@lru_cache(maxsize=128)
def is_acceptable(accept: str, media_types: tuple[str, ...]) -> bool:
    """Return whether this Accept field allows one of these media types."""
    accepted = parse_accept_header(accept, MIMEAccept)
    return not accepted or any(accepted[media_type] > 0 for media_type in media_types)


def find_wrong_parameters(request: Request, operation: Operation) -> Iterator[Fault]:
    """Yield the faults of unknown and repeated query parameters."""
    for name, values in request.args.lists():
        if name not in operation.query_names:
            yield {"parameter": name[:200], "detail": "Unknown parameter."}
        elif len(values) > 1:
            yield {"parameter": name, "detail": "Must be given once."}
