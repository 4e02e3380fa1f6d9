"""One stream of log lines: JSON, or readable on a terminal; one line for each request."""

from __future__ import annotations

import logging
import re
import sys
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

import orjson
import structlog
from flask import Flask, Response, g, request
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor

    Observer: TypeAlias = Callable[[str | None, str, int, float], None]

log = structlog.get_logger(__name__)

# A request id goes into log lines, headers and problems as it is: nothing that needs quoting.
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class StreamLogger(structlog.WriteLogger):
    """Writes lines to a stream, under the name of the module that they come from."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send our log lines and those of the libraries to `stream`, by default standard error."""
    stream = stream or sys.stderr
    stamped: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[Processor] = (
        # Not its default for exceptions, which shows the values of variables: a user's words.
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if stream.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(to_json)]
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


def to_json(line: EventDict, **_: Any) -> str:
    return orjson.dumps(line, default=repr).decode()


def request_id() -> str:
    """The id of the request that is served: the client's own, or one that we made."""
    return str(g.request_id)


@cache
def template(rule: str) -> str:
    """Flask's rule as the OpenAPI document spells it: `/api/{user_id}/tasks`."""
    return re.sub("<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)


def log_requests(app: Flask, observe: Observer | None = None) -> None:
    """Give every request an id, answer it as `X-Request-Id`, and log one line for each.

    `observe`, if there is one, is told of each: the route or None, the method, status and seconds.
    """

    @app.before_request
    def begin() -> None:
        g.started = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if WELL_FORMED.fullmatch(given) else str(uuid7())
        g.user_id = None
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        # Not the path, which holds what the client wrote.
        route = template(request.url_rule.rule) if request.url_rule else None
        seconds = time.monotonic() - g.started
        log.info(
            "request",
            method=request.method,
            route=route,
            status=response.status_code,
            duration_ms=round(seconds * 1000, 2),
            user_id=g.user_id,
        )
        if observe:
            observe(route, request.method, response.status_code, seconds)
        return response
