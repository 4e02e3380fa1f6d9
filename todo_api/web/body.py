"""Read a request's body: no further than its Content-Length, and all of it or nothing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import structlog
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header

from todo_api.web import strict_json
from todo_api.web.problems import length_required, malformed, unsupported_media_type
from todo_api.web.requests import READS, Request

if TYPE_CHECKING:
    from todo_api.web.operation import Operation

log = structlog.get_logger(__name__)


MAX_BODY = 128 * 1024  # bytes


CONTENT_LENGTH = re.compile("[0-9]{1,18}")


CUT_OFF = "The body ended before its Content-Length."


def read_body(request: Request) -> bytes:
    """Return the request's body, of at most MAX_BODY bytes, and nothing of what follows it.

    Raises a 413; a 400 for a body that was cut off, or whose chunks are malformed; a 411 for a
    chunked one if the server leaves chunks to the application (PEP 3333 has no word for them).
    """
    environ = request.environ
    # Set by servers that find the end of a body themselves: gunicorn, waitress.
    terminated = environ.get("wsgi.input_terminated", False)
    announced = environ.get("CONTENT_LENGTH") or None
    if not terminated and request.header("Transfer-Encoding") is not None:
        raise length_required()
    if announced is not None:
        if not CONTENT_LENGTH.fullmatch(announced):
            raise malformed("Content-Length must be a number.")
        if int(announced) > MAX_BODY:
            raise RequestEntityTooLarge
    # werkzeug ends a chunked body at this limit without an error: one byte more shows it.
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
    # werkzeug leaves this check to a server that sets wsgi.input_terminated. gunicorn sets it, but
    # ends a body that was cut off without an error.
    if announced is not None and len(data) < int(announced):
        raise malformed(CUT_OFF)
    return data


@lru_cache(maxsize=128)
def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type field, without its parameters."""
    return parse_options_header(content_type)[0].lower()


def read_json_body(request: Request, operation: Operation) -> Any:
    """Return the parsed JSON body; an empty object if none is sent and none is required."""
    if not operation.media_types:
        # The body is not used, but a request that was cut off must not be acted on.
        if request.method not in READS:
            read_body(request)
        return None
    sent = bool(request.content_length) or request.header("Transfer-Encoding") is not None
    if sent or operation.is_body_required:
        sent_type = media_type(request.environ.get("CONTENT_TYPE", ""))
        if sent_type not in operation.media_types:
            raise unsupported_media_type(operation.media_types)
    data = read_body(request)
    if not data and not operation.is_body_required:
        return {}
    try:
        return strict_json.loads(data)
    except strict_json.NotJsonError as error:
        raise malformed(f"The body is not JSON: {error}.") from None
