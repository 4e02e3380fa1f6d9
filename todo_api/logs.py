"""One stream of log lines: JSON, or readable on a terminal; one line for each request."""

from __future__ import annotations

import logging
import re
import sys
import time
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, TextIO, TypeAlias

import orjson
import structlog
from flask import Flask, Response, has_request_context

from todo_api.messages import current_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor, WrappedLogger

    Observer: TypeAlias = Callable[[str | None, str, int, float], None]

log = structlog.get_logger(__name__)


class StreamLogger(structlog.WriteLogger):
    """Writes lines to a stream, under the name of the module that they come from."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send our log lines and those of the libraries to `stream`, by default standard error."""
    stream = stream or sys.stderr
    stamped: list[Processor] = [
        add_request_id,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
    ]
    rendered: list[Processor] = (
        # Not its default for exceptions, which shows the values of variables: a user's words.
        [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ]
        if stream.isatty()
        else [
            add_timestamp,
            structlog.processors.format_exc_info,
            to_json,
        ]
    )
    # Ours are written as they are. By way of the standard library's logging, for which there is a
    # handler below, a line costs three times as much: 24 us instead of 8, each request.
    structlog.configure(
        processors=[*stamped, *rendered],
        logger_factory=partial(StreamLogger, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
            foreign_pre_chain=[*stamped, structlog.stdlib.ExtraAdder()],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def add_request_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """To whatever is logged while a request is served, in its thread, its id."""
    if has_request_context():
        line["request_id"] = current_request().id
    return line


def add_timestamp(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """As structlog's own TimeStamper, for a renderer that writes moments itself."""
    line["timestamp"] = datetime.now(UTC)
    return line


def to_json(_: WrappedLogger, __: str, line: EventDict) -> str:
    return orjson.dumps(line, default=repr, option=orjson.OPT_UTC_Z).decode()


@cache
def template(rule: str) -> str:
    """Flask's rule as the OpenAPI document spells it: `/api/{user_id}/tasks`."""
    return re.sub("<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)


def log_requests(app: Flask, observe: Observer | None = None) -> None:
    """Answer every request's id as `X-Request-Id`, and log one line for each.

    `observe`, if there is one, is told of each: the route or None, the method, status and seconds.
    """

    @app.after_request
    def end(response: Response) -> Response:
        request = current_request()
        response.headers.add("X-Request-Id", request.id)
        # Not the path, which holds what the client wrote.
        route = template(request.url_rule.rule) if request.url_rule else None
        seconds = time.monotonic() - request.started
        log.info(
            "request",
            method=request.method,
            route=route,
            status=response.status_code,
            duration_ms=round(seconds * 1000, 2),
            user_id=request.user_id,
        )
        if observe:
            observe(route, request.method, response.status_code, seconds)
        return response
