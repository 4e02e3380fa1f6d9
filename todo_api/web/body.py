"""Read a request's body: at most its Content-Length, and only if the body is complete."""

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


MAX_BODY = 256 * 1024  # bytes


CONTENT_LENGTH = re.compile("[0-9]{1,18}")


INCOMPLETE_BODY = "Send the whole body: it ended before its Content-Length."


def read_body(request: Request) -> bytes:
    """Return the request's body, of at most MAX_BODY bytes.

    Raises a 413 if the body is longer, a 400 if it is incomplete or its chunks are malformed, and a
    411 if it is chunked and the WSGI server does not decode chunks (PEP 3333 has no rule for
    chunks).
    """
    environ = request.environ
    # Servers that detect the end of a body set this, such as gunicorn and waitress.
    is_terminated = environ.get("wsgi.input_terminated", False)
    content_length = environ.get("CONTENT_LENGTH") or None
    if not is_terminated and request.header("Transfer-Encoding") is not None:
        raise length_required()
    if content_length is not None:
        if not CONTENT_LENGTH.fullmatch(content_length):
            raise malformed("Send a Content-Length that is a number.")
        if int(content_length) > MAX_BODY:
            raise RequestEntityTooLarge
    # werkzeug truncates a chunked body at this limit without an error. The additional byte shows
    # that the body is too long.
    request.max_content_length = MAX_BODY + 1
    try:
        data = request.get_data()
    except Exception as error:  # noqa: BLE001  each server raises its own exceptions
        log.info("request body unreadable", error=type(error).__name__)
        raise malformed(
            "Send well-formed chunks: the server could not read the body."
            if content_length is None
            else INCOMPLETE_BODY
        ) from None
    if len(data) > MAX_BODY:
        raise RequestEntityTooLarge
    # If a server sets wsgi.input_terminated, werkzeug does not check the length. gunicorn sets it,
    # but raises no error for an incomplete body.
    if content_length is not None and len(data) < int(content_length):
        raise malformed(INCOMPLETE_BODY)
    return data


@lru_cache(maxsize=128)
def parse_media_type(content_type: str) -> str:
    """Return the media type in a Content-Type field, without parameters."""
    return parse_options_header(content_type)[0].lower()


def read_json_body(request: Request, operation: Operation) -> Any:
    """Return the parsed JSON body, or an empty object if the optional body is missing."""
    if not operation.media_types:
        # The body is not used, but an incomplete request must not change anything.
        if request.method not in READS:
            read_body(request)
        return None
    has_body = bool(request.content_length) or request.header("Transfer-Encoding") is not None
    if has_body or operation.is_body_required:
        sent_type = parse_media_type(request.environ.get("CONTENT_TYPE", ""))
        if sent_type not in operation.media_types:
            raise unsupported_media_type(operation.media_types, request.method)
    data = read_body(request)
    if not data and not operation.is_body_required:
        return {}
    try:
        return strict_json.loads(data)
    except strict_json.NotJsonError as error:
        raise malformed(f"Send the body as valid JSON: {error}.") from None
