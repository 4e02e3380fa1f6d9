"""The log: one stream of lines, JSON or, on a terminal, readable text."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TextIO

import orjson
import structlog
from flask import has_request_context

from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


class StreamLogger(structlog.WriteLogger):
    """Writes log lines to a stream. `name` is the module that logs them."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send the log lines of this package and of libraries to `stream`, or to standard error."""
    stream = stream or sys.stderr
    context: list[Processor] = [
        add_request_id,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
    ]
    rendered: list[Processor] = (
        # Not structlog's default traceback, which shows the values of variables, such as users'
        # text.
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
    # Log lines of this package go to the stream directly, which takes 8 us per line. The standard
    # library's logging, which the lines of libraries use, takes 24 us.
    structlog.configure(
        processors=[*context, *rendered],
        logger_factory=partial(StreamLogger, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
            foreign_pre_chain=[*context, structlog.stdlib.ExtraAdder()],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def add_request_id(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Add the request id to a line that is logged during a request."""
    if has_request_context():
        line["request_id"] = current_request().id
    return line


def add_timestamp(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    """Add the time as a datetime, which orjson formats."""
    line["timestamp"] = datetime.now(UTC)
    return line


def to_json(_: WrappedLogger, __: str, line: EventDict) -> str:
    """Return the line as JSON."""
    return orjson.dumps(line, default=repr, option=orjson.OPT_UTC_Z).decode()
