"""flask-smorest, fitted to the contract: strict bodies and queries, one error shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from uuid import UUID

import flask_smorest
from flask import Flask, Response, current_app, g, request
from webargs import missing
from webargs.flaskparser import FlaskParser
from werkzeug.routing import UnicodeConverter

from todo_api import strict_json
from todo_api.auth import OPEN_BLUEPRINTS, UUID_TEXT
from todo_api.errors import (
    KIND_OF_STATUS,
    Fault,
    invalid,
    malformed,
    not_found,
    unsupported_media_type,
)
from todo_api.schemas import ProblemDetails

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flask import Request
    from marshmallow import Schema, ValidationError

    from todo_api.database import Database
    from todo_api.statements.tasks import TaskRow

View = TypeVar("View", bound="Callable[..., Response]")

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
IDS = {"user_id", "task_id"}
MAX_BODY = 128 * 1024  # bytes

# The version of a task's representation, in front of its revision in an ETag: a deploy that adds a
# field must not pass off as unchanged what a client kept from before.
REPRESENTATION = 1


class IdConverter(UnicodeConverter):
    """Any text, for `check_request` to read as a UUID: what is none is 422, not 404."""


class Parser(FlaskParser):
    """webargs' parser on what `check_request` has read; its errors name their places."""

    def load_json(self, req: Request, schema: Schema) -> Any:  # noqa: ARG002  webargs' signature
        return g.body

    def handle_error(
        self,
        error: ValidationError,
        req: Request,  # noqa: ARG002  webargs' signature
        schema: Schema,  # noqa: ARG002
        *,
        error_status_code: int | None,  # noqa: ARG002
        error_headers: Mapping[str, str] | None,  # noqa: ARG002
    ) -> NoReturn:
        ((location, messages),) = error.messages_dict.items()
        if location == "json":
            raise invalid({"pointer": at, "detail": text} for at, text in faults(messages))
        raise invalid({"parameter": at[1:], "detail": text} for at, text in faults(messages))


def faults(messages: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Each message of marshmallow's tree with the JSON Pointer (RFC 6901) of its place."""
    if isinstance(messages, dict):
        for key, below in messages.items():
            # A key is the client's own text, and may hold what UTF-8 cannot.
            text = str(key).encode(errors="replace").decode()[:200]
            step = "/" + text.replace("~", "~0").replace("/", "~1")
            yield from faults(below, at if key == "_schema" else at + step)
    else:
        yield from ((at, str(message)) for message in messages)


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose operations document every refusal that `check_request` may give them."""

    ARGUMENTS_PARSER = Parser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(self._prepare_refusals_doc)

    def response(self, *args: Any, **kwargs: Any) -> Callable[[View], View]:
        """Document an answer, no more: a view returns its Response whole."""
        document = super().response(*args, **kwargs)

        def documented(view: View) -> View:
            view._apidoc = document(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001
            return view

        return documented

    def _prepare_refusals_doc(self, doc: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        responses = doc.setdefault("responses", {})
        content = doc.get("requestBody", {}).get("content")
        if content:
            responses.update(dict.fromkeys((400, 413, 415)))
        if MERGE_PATCH in (content or {}):
            content[JSON] = content[MERGE_PATCH]
        if "user_id" in (self.url_prefix or ""):
            responses.update(dict.fromkeys((404, 422, 503)))
        if self.name not in OPEN_BLUEPRINTS:
            responses.update(dict.fromkeys((401, 503)))
            doc["security"] = [{"bearer": []}]
        responses[500] = None
        for status in responses.keys() & KIND_OF_STATUS.keys():
            responses[status] = refusal(status)
        doc["responses"] = dict(sorted(responses.items()))
        return doc


class Api(flask_smorest.Api):
    """The API's document, and the checks that stand before every operation."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
        app.url_map.converters["id"] = IdConverter
        # A path is what it says: no redirect to one with fewer slashes.
        app.url_map.merge_slashes = False
        super().__init__(app)
        self.register_converter(IdConverter, lambda _: {"type": "string", "format": "uuid"})
        app.before_request(check_request)

    def _register_responses(self) -> None:
        for status, (_, title) in KIND_OF_STATUS.items():
            content = {"application/problem+json": {"schema": ProblemDetails}}
            response = {"description": title, "content": content}
            self.spec.components.response(refusal(status), response, lazy=True)

    def _register_error_handlers(self) -> None:
        """errors.py owns them."""


def refusal(status: int) -> str:
    return f"Problem{status}"


@dataclass(frozen=True)
class Operation:
    """What a view takes: the media types of its body, and the names of its query."""

    media_types: tuple[str, ...]
    body_required: bool
    query: frozenset[str]


@cache
def operation_of(view: Callable[..., Any]) -> Operation:
    """The operation that the view's `arguments` declare."""
    declared = getattr(view, "_apidoc", {}).get("arguments", {}).get("parameters", ())
    at = {argument["in"]: argument for argument in declared}
    body, query = at.get("json"), at.get("query")
    return Operation(
        tuple({body.get("content_type", JSON): None, JSON: None}) if body else (),
        bool(body and body["required"]),
        frozenset(query["schema"]().fields if query else ()),
    )


def check_request() -> None:
    """Refuse what no operation accepts: 415, 413, 400, then 422 for ids and unknown parameters.

    Leaves the parsed body in `g.body`, and UUIDs for the path's ids in the view's arguments.
    """
    if request.routing_exception or request.method == "OPTIONS":
        return
    operation = operation_of(current_app.view_functions[request.endpoint or ""])
    g.body = parsed_body(operation)
    arguments = request.view_args or {}
    errors: list[Fault] = []
    for name in arguments.keys() & IDS:
        if UUID_TEXT.fullmatch(arguments[name]):
            arguments[name] = UUID(arguments[name])
        else:
            errors.append({"parameter": name, "detail": "Must be a UUID."})
    for name, values in request.args.lists():
        if name not in operation.query:
            errors.append({"parameter": name[:200], "detail": "There is no such parameter."})
        elif len(values) > 1:
            errors.append({"parameter": name, "detail": "Must be given once."})
    if errors:
        raise invalid(errors)
    g.user_id = arguments.get("user_id", g.user_id)


def parsed_body(operation: Operation) -> Any:
    """The body as `json.loads` has it, or webargs' `missing` where none is sent and none needed."""
    if not operation.media_types:
        return missing
    sent = bool(request.content_length) or "Transfer-Encoding" in request.headers
    if (sent or operation.body_required) and request.mimetype not in operation.media_types:
        raise unsupported_media_type(operation.media_types)
    data = request.get_data(cache=False)
    if not data and not operation.body_required:
        return missing
    try:
        return strict_json.loads(data)
    except strict_json.NotJsonError as error:
        raise malformed(f"The body is not JSON: {error}.") from None


def database() -> Database:
    """The database of the application that serves this request."""
    found: Database = current_app.extensions["database"]
    return found


def answer(task: TaskRow | None, status: int = 200) -> Response:
    """The task as PostgreSQL wrote it, with its ETag; 404 if there is none."""
    if task is None:
        raise not_found()
    response = user_data(task.json, status)
    response.headers["ETag"] = f'"{REPRESENTATION}.{task.revision}"'
    return response


def no_content() -> Response:
    """A 204."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def user_data(body: bytes, status: int = 200) -> Response:
    """An answer that only its owner's client may keep, and must revalidate."""
    response = Response(body, status, mimetype=JSON)
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Vary"] = "Authorization"
    return response
