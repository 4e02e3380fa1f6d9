"""flask-smorest, fitted to the contract: strict bodies and queries, one error shape."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import flask_smorest
import structlog
from flask import Flask, Response, current_app
from marshmallow import ValidationError
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_accept_header, parse_options_header
from werkzeug.routing import UnicodeConverter

from todo_api import strict_json
from todo_api.auth import OPEN_BLUEPRINTS, SESSION, UUID_TEXT
from todo_api.database import Database
from todo_api.document import (
    HEADERS,
    JSON,
    NOT_MODIFIED,
    REQUEST_HEADERS,
    Kind,
    Rules,
    Shapes,
    complete,
    refusals,
)
from todo_api.errors import (
    Fault,
    invalid,
    length_required,
    malformed,
    not_acceptable,
    not_found,
    precondition_failed,
    precondition_required,
    unsupported_media_type,
)
from todo_api.messages import Answer, Request, current_request
from todo_api.preconditions import etag, tags
from todo_api.statements.tasks import Condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from marshmallow import Schema

    from todo_api.pool import Pool
    from todo_api.statements.tasks import Found, TaskRow

log = structlog.get_logger(__name__)

View = TypeVar("View", bound="Callable[..., Response]")

IDS = {"user_id", "task_id"}
MAX_BODY = 128 * 1024  # bytes
CONTENT_LENGTH = re.compile("[0-9]{1,18}")
CUT_OFF = "The body ended before its Content-Length."

READS = {"GET", "HEAD"}

# Only its owner's client may keep user data, and must revalidate them.
KEPT = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


class IdConverter(UnicodeConverter):
    """Any text, for `check_request` to read as a UUID: what is none is 422, not 404.

    But for the one name beside the users' ids: else its path would know their methods, too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.regex = rf"(?!{SESSION.rpartition('/')[2]}$){self.regex}"


def load_body(schema: Schema) -> Any:
    """The request's body, as `check_request` has read it, if the schema lets it pass."""
    try:
        return schema.load(current_request().body)
    except ValidationError as error:
        messages = error.messages
    raise invalid({"pointer": at, "detail": text} for at, text in faults(messages))


def load_query(schema: Schema) -> Any:
    """The request's query, in which `check_request` has seen each name once, if it may pass."""
    try:
        return dict(loaded(schema, tuple(current_request().args.items())))
    except ValidationError as error:
        messages = error.messages
    raise invalid({"parameter": at[1:], "detail": text} for at, text in faults(messages))


# Clients of one kind ask the same; to find nine of ten parameters not given takes 20 us each time.
@lru_cache(maxsize=128)
def loaded(schema: Schema, query: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    found: dict[str, Any] = schema.load(dict(query))
    return found


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
    """A blueprint whose operations document all that they may answer, refusals included."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(self._prepare_operation_doc)

    def arguments(
        self, schema: type[Schema], *, location: str = "json", **kwargs: Any
    ) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Document what a view takes, and give it that as the schema has it.

        webargs, of which flask-smorest makes use, takes longer to get there than all else.
        """
        instance = schema()
        document = super().arguments(instance, location=location, **kwargs)
        load = load_query if location == "query" else load_body

        def documented(view: Callable[..., Response]) -> Callable[..., Response]:
            @wraps(view)
            def given(**path: Any) -> Response:
                return view(load(instance), **path)

            given._apidoc = document(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001
            return given

        return documented

    def response(self, *args: Any, **kwargs: Any) -> Callable[[View], View]:
        """Document an answer, no more: a view returns its Response whole."""
        document = super().response(*args, **kwargs)

        def documented(view: View) -> View:
            view._apidoc = document(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001
            return view

        return documented

    def conditional(self, view: View) -> View:
        """Document that the view heeds If-Match, as `condition` reads it."""
        return marked(view, "conditional")

    def idempotent(self, view: View) -> View:
        """Document that the view heeds Idempotency-Key, as `idempotency_key` reads it."""
        return marked(view, "idempotent")

    def _prepare_operation_doc(
        self, doc: dict[str, Any], doc_info: dict[str, Any], *, method: str, **_: Any
    ) -> dict[str, Any]:
        queries = doc.get("parameters", ())
        kind = Kind(
            of_user="user_id" in (self.url_prefix or ""),
            secured=self.name not in OPEN_BLUEPRINTS,
            conditional="conditional" in doc_info,
            idempotent="idempotent" in doc_info,
            changes=method.upper() not in READS,
            body="requestBody" in doc,
            paged=any("cursor" in query["schema"].fields for query in queries),
        )
        return complete(doc, kind)


def marked(view: View, mark: str) -> View:
    """The view, with a mark in what flask-smorest documents of it."""
    view._apidoc = deepcopy(getattr(view, "_apidoc", {})) | {mark: True}  # type: ignore[attr-defined]  # noqa: SLF001
    return view


class Api(flask_smorest.Api):
    """The API's document, and the checks that stand before every operation."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
        app.url_map.converters["id"] = IdConverter
        # A path is what it says: no redirect to one with fewer slashes.
        app.url_map.merge_slashes = False
        plugins = {"flask_plugin": Rules(), "marshmallow_plugin": Shapes()}
        super().__init__(app, spec_kwargs=plugins)
        app.before_request(partial(check_request, app.view_functions))

    def _register_responses(self) -> None:
        components = self.spec.components
        for name, header in HEADERS.items():
            components.header(name, deepcopy(header), lazy=True)
        for name, parameter in REQUEST_HEADERS.items():
            components.parameter(name, "header", deepcopy(parameter), lazy=True)
        for name, response in refusals().items():
            components.response(name, response, lazy=True)

    def _register_etag_headers(self) -> None:
        """document.py has them."""

    def _register_pagination_header(self) -> None:
        """document.py has it: Link."""

    def _register_error_handlers(self) -> None:
        """errors.py owns them."""


@dataclass(frozen=True)
class Operation:
    """What a view takes, its body's types and its query's names, and whether it answers JSON."""

    media_types: tuple[str, ...]
    body_required: bool
    query: frozenset[str]
    json: bool


@cache
def operation_of(view: Callable[..., Any]) -> Operation:
    """The operation that the view's `arguments` declare."""
    documented = getattr(view, "_apidoc", {})
    declared = documented.get("arguments", {}).get("parameters", ())
    at = {argument["in"]: argument for argument in declared}
    body, query = at.get("json"), at.get("query")
    return Operation(
        tuple({body.get("content_type", JSON): None, JSON: None}) if body else (),
        bool(body and body["required"]),
        frozenset(query["schema"].fields if query else ()),
        bool(documented),
    )


def check_request(views: Mapping[str, Callable[..., Any]]) -> None:
    """Refuse what no operation accepts: 406, 415, 413, 400; 422 for ids and unknown parameters.

    Leaves the parsed body in the request, and UUIDs for the path's ids in the view's arguments.
    """
    request = current_request()
    if request.routing_exception or request.method == "OPTIONS":
        return
    operation = operation_of(views[request.endpoint or ""])
    wanted = request.field("Accept")
    if operation.json and wanted and not allows(wanted, JSON):
        raise not_acceptable(JSON)
    request.body = parsed_body(request, operation)
    arguments = request.view_args or {}
    errors: list[Fault] = []
    for name, text in arguments.items():
        if name not in IDS:
            continue
        if UUID_TEXT.fullmatch(text):
            arguments[name] = UUID(text)
        else:
            errors.append({"parameter": name, "detail": "Must be a UUID."})
    if request.query_string:
        errors += wrong_parameters(request, operation)
    if errors:
        raise invalid(errors)
    request.user_id = arguments.get("user_id", request.user_id)


# Clients of one kind send one field.
@lru_cache(maxsize=128)
def allows(accept: str, media_type: str) -> bool:
    """Whether this Accept field allows this type."""
    wanted = parse_accept_header(accept, MIMEAccept)
    return not wanted or wanted[media_type] > 0


def read_body(request: Request) -> bytes:
    """Return the request's body, of at most MAX_BODY bytes, and nothing of what follows it.

    Raises a 413; a 400 for a body that was cut off, or whose chunks are malformed; a 411 for a
    chunked one if the server leaves chunks to the application (PEP 3333 has no word for them).
    """
    environ = request.environ
    # Set by servers that find the end of a body themselves: gunicorn, waitress.
    terminated = environ.get("wsgi.input_terminated", False)
    announced = environ.get("CONTENT_LENGTH") or None
    if not terminated and request.field("Transfer-Encoding") is not None:
        raise length_required()
    if announced is not None:
        if not CONTENT_LENGTH.fullmatch(announced):
            raise malformed("Content-Length must be a number.")
        if int(announced) > MAX_BODY:
            raise RequestEntityTooLarge
    # werkzeug ends a chunked body at this limit without an error: one byte more tells.
    request.max_content_length = MAX_BODY + 1
    try:
        data = request.get_data()
    except Exception as error:  # noqa: BLE001  each server has its own for what it cannot read
        log.info("unreadable body", error=type(error).__name__)
        raise malformed(
            "The body's chunks cannot be read." if announced is None else CUT_OFF
        ) from None
    if len(data) > MAX_BODY:
        raise RequestEntityTooLarge
    # werkzeug leaves that to a server that says that it finds the end, and gunicorn says so, but
    # ends a body that was cut off without an error.
    if announced is not None and len(data) < int(announced):
        raise malformed(CUT_OFF)
    return data


@lru_cache(maxsize=128)
def media_type_of(content_type: str) -> str:
    """The media type in a Content-Type field, without its parameters."""
    return parse_options_header(content_type)[0].lower()


def wrong_parameters(request: Request, operation: Operation) -> Iterator[Fault]:
    for name, values in request.args.lists():
        if name not in operation.query:
            yield {"parameter": name[:200], "detail": "There is no such parameter."}
        elif len(values) > 1:
            yield {"parameter": name, "detail": "Must be given once."}


def parsed_body(request: Request, operation: Operation) -> Any:
    """The body as `json.loads` has it; an empty object where none is sent and none needed."""
    if not operation.media_types:
        # Nobody looks at it, but a request that was cut off is not to be acted on.
        if request.method not in READS:
            read_body(request)
        return None
    sent = bool(request.content_length) or request.field("Transfer-Encoding") is not None
    if sent or operation.body_required:
        media_type = media_type_of(request.environ.get("CONTENT_TYPE", ""))
        if media_type not in operation.media_types:
            raise unsupported_media_type(operation.media_types)
    data = read_body(request)
    if not data and not operation.body_required:
        return {}
    try:
        return strict_json.loads(data)
    except strict_json.NotJsonError as error:
        raise malformed(f"The body is not JSON: {error}.") from None


def database() -> Database:
    """The application's database, for as long as this request may take."""
    pool: Pool = current_app.extensions["pool"]
    return Database(pool, current_request().started + pool.request_timeout)


def answer(task: TaskRow | None, status: int = 200) -> Response:
    """The task as PostgreSQL wrote it, with its ETag; 404 if there is none, 304 if it is known."""
    if task is None:
        raise not_found()
    tag = etag(task.revision)
    if current_request().method in READS:
        given = tags("If-None-Match")
        if given and (given.any or task.revision in given.revisions(weak=True)):
            return not_modified(tag)
    return user_data(task.json, tag, status)


def answer_change(found: Found) -> Response:
    """The changed task; 404 if there is none, 412 with the task as it is if it was not changed."""
    if found.task is not None and not found.done:
        raise precondition_failed(found.task.json, etag(found.task.revision))
    return answer(found.task)


def condition() -> Condition | None:
    """What If-Match and If-None-Match ask of a task that is to be changed.

    Raises a 428 where the settings want an If-Match and there is none.
    """
    match, none_match = tags("If-Match"), tags("If-None-Match")
    if match is None and current_app.config["REQUIRE_IF_MATCH"]:
        raise precondition_required()
    if match is None and none_match is None:
        return None
    return Condition(
        match=None if match is None or match.any else match.revisions(weak=False),
        none_match=none_match.revisions(weak=True) if none_match else (),
        none=none_match is not None and none_match.any,
    )


def no_content() -> Response:
    """A 204."""
    return Answer(None, 204, {})


def user_data(body: bytes, tag: str, status: int = 200) -> Response:
    """An answer that only its owner's client may keep, and must revalidate."""
    return Answer(body, status, {"Content-Type": JSON, "ETag": tag, **KEPT})


def not_modified(tag: str) -> Response:
    """A 304: what the client has is what it would be sent."""
    return Answer(None, NOT_MODIFIED, {"ETag": tag, **KEPT})
