"""Map exceptions to responses with problem details (RFC 9457)."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TypeAlias

import psycopg
import structlog
from flask import Flask, Response
from psycopg.errors import QueryCanceled
from psycopg_pool import PoolTimeout, TooManyRequests
from werkzeug.exceptions import HTTPException, InternalServerError

from todo_api.db.errors import OutcomeUnknownError, meaning
from todo_api.web.problems import DETAIL_OF_STATUS, Problem, bug, invalid, unavailable

log = structlog.get_logger(__name__)

# By the name of the constraint: a JSON Pointer (RFC 6901), and the detail.
Constraints: TypeAlias = Mapping[str, tuple[str, str]]


def http_problem(error: HTTPException) -> Problem:
    status = error.code or 500
    detail = DETAIL_OF_STATUS.get(status) or error.description or ""
    kept = ("Allow", "Retry-After")
    headers = {name: value for name, value in error.get_headers() if name in kept}
    return Problem(status, detail, headers=headers)


UNAVAILABLE_DETAILS: dict[type[psycopg.Error], str] = {
    PoolTimeout: "The database takes no connections. Try again.",
    TooManyRequests: "Too many requests are with the database. Try again.",
    QueryCanceled: "The database took too long. Try again.",
}


class DatabaseBugError(Exception):
    """A statement failed that no request should make fail.

    It stands for psycopg's error, whose own text can quote a row: that goes neither to the log nor
    to a tool that reports errors.
    """

    def __init__(self, error: psycopg.Error) -> None:
        self.fields = {
            "error": type(error).__name__,
            "sqlstate": error.sqlstate,
            "constraint": error.diag.constraint_name,
            "table": error.diag.table_name,
        }
        super().__init__(", ".join(f"{name}={value}" for name, value in self.fields.items()))


def log_bug(error: BaseException) -> None:
    """Log an exception that is no answer: the one line for what a 500 does not tell."""
    if isinstance(error, DatabaseBugError):
        stack = "".join(traceback.format_tb(error.__traceback__))
        log.error("database error", stack=stack, **error.fields)
    else:
        log.error("unhandled exception", exc_info=error)


def database_problem(error: psycopg.Error, constraints: Constraints) -> Problem | None:
    """Return the problem of a constraint or an SQLSTATE; None if the failure is a bug."""
    fault = constraints.get(error.diag.constraint_name or "")
    if fault is not None:
        pointer, detail = fault
        return invalid([{"pointer": pointer, "detail": detail}])
    if isinstance(error, OutcomeUnknownError):
        log.warning("outcome unknown", cause=type(error.__cause__).__name__)
        return unavailable(
            "The database was lost on the way: whether the change was made cannot be told. "
            "Read before you ask again, or ask again with the same If-Match or Idempotency-Key."
        )
    if meaning(error).is_unavailable:
        log.warning("database unavailable", error=type(error).__name__, sqlstate=error.sqlstate)
        return unavailable(
            UNAVAILABLE_DETAILS.get(type(error), "The database is not well. Try again.")
        )
    return None


def register_error_handlers(app: Flask, constraints: Constraints) -> None:
    """Answer every exception with a problem.

    `constraints` has the pointer and the detail of each constraint that a request can violate
    though its schema let it pass. The violation of another one is a bug, and a 500.
    """

    @app.errorhandler(Problem)
    def of_problem(problem: Problem) -> Response:
        return problem.response()

    @app.errorhandler(HTTPException)
    def of_refusal(error: HTTPException) -> Response:
        return http_problem(error).response()

    @app.errorhandler(psycopg.Error)
    def of_failed_statement(error: psycopg.Error) -> Response:
        problem = database_problem(error, constraints)
        if problem is None:
            raise DatabaseBugError(error).with_traceback(error.__traceback__) from None
        return problem.response()

    # Not of Exception: Flask then logs a bug, and signals `got_request_exception`, on which tools
    # that report errors rely.
    @app.errorhandler(InternalServerError)
    def of_bug(_: InternalServerError) -> Response:
        return bug().response()
