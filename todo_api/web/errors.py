"""Map exceptions to responses with problem details (RFC 9457)."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TypeAlias

import orjson
import psycopg
import structlog
from flask import Flask, Response
from psycopg.errors import ForeignKeyViolation, QueryCanceled, UniqueViolation
from psycopg_pool import PoolTimeout, TooManyRequests
from werkzeug.exceptions import HTTPException, InternalServerError, NotFound

from todo_api.db.errors import OutcomeUnknownError, meaning
from todo_api.web.problems import (
    DETAIL_OF_STATUS,
    Problem,
    conflict,
    internal_error,
    invalid,
    unavailable,
)
from todo_api.web.requests import current_request

log = structlog.get_logger(__name__)

# For each name of a constraint: the details of the error, by the member of the body that they are
# about.
Constraints: TypeAlias = Mapping[str, Mapping[str, str]]


def problem_of_http_exception(error: HTTPException) -> Problem:
    """Return the problem of an error that Flask or werkzeug raises."""
    status = error.code or 500
    detail = DETAIL_OF_STATUS.get(status) or error.description or ""
    kept_names = ("Allow", "Retry-After")
    headers = {name: value for name, value in error.get_headers() if name in kept_names}
    return Problem(status, detail, headers=headers)


TRY_AGAIN = "Try again after Retry-After seconds"
RACE_LOST = f"{TRY_AGAIN}: other requests create or remove the same items."
# The detail of a 404 if the path without the slash at its end has a route.
SLASH_AT_END = "No route has this path: remove the slash at its end."

UNAVAILABLE_DETAILS: dict[type[psycopg.Error], str] = {
    PoolTimeout: f"{TRY_AGAIN}: the database accepts no connections.",
    TooManyRequests: f"{TRY_AGAIN}: too many requests use the database.",
    QueryCanceled: f"{TRY_AGAIN}: the database took too long.",
    UniqueViolation: RACE_LOST,
    ForeignKeyViolation: RACE_LOST,
}


class DatabaseBugError(Exception):
    """A statement failed for a reason that no request should cause.

    This exception replaces psycopg's error, because the text of that error can quote a row, and
    must not be in the log or in tools that report errors.
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
    """Log an unhandled exception. The 500 response has no details of it."""
    if isinstance(error, DatabaseBugError):
        stack = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected database error", stack=stack, **error.fields)
    else:
        log.error("unhandled exception", exc_info=error)


def problem_of_database_error(
    error: psycopg.Error, constraints: Constraints, conflicts: Mapping[str, str]
) -> Problem | None:
    """Return the problem for the error's constraint or SQLSTATE, or None if the error is a bug."""
    constraint = error.diag.constraint_name or ""
    if constraint in conflicts:
        # The detail of a quota is made by the database as JSON.
        return conflict(conflicts[constraint], orjson.loads(error.diag.message_detail or "{}"))
    details = constraints.get(constraint)
    if details is not None:
        body = current_request().body
        sent = [name for name in details if isinstance(body, dict) and name in body]
        member = next(iter(sent or details))
        return invalid([{"pointer": f"/{member}", "detail": details[member]}])
    if isinstance(error, OutcomeUnknownError):
        log.warning("write outcome unknown", error=type(error.__cause__).__name__)
        return unavailable(
            "Send the same request again after Retry-After seconds: the connection to the database "
            "broke, and the server cannot tell whether the change was made."
        )
    if meaning(error).is_unavailable:
        log.warning(
            "database unavailable",
            error=type(error).__name__,
            sqlstate=error.sqlstate,
            constraint=error.diag.constraint_name,
        )
        return unavailable(
            UNAVAILABLE_DETAILS.get(type(error), f"{TRY_AGAIN}: the database is not available.")
        )
    return None


def register_error_handlers(
    app: Flask, constraints: Constraints, conflicts: Mapping[str, str]
) -> None:
    """Map every exception to a response with problem details.

    `conflicts` has the problem kind of each constraint whose violation is a 409, and `constraints`
    has the constraints that a request can violate although it is valid by its schema.
    The violation of any other constraint is a bug (500).
    """

    @app.errorhandler(Problem)
    def respond_to_problem(problem: Problem) -> Response:
        return problem.response()

    @app.errorhandler(HTTPException)
    def respond_to_http_exception(error: HTTPException) -> Response:
        return problem_of_http_exception(error).response()

    @app.errorhandler(NotFound)
    def respond_to_unknown_path(error: NotFound) -> Response:
        problem = problem_of_http_exception(error)
        path = current_request().path
        adapter = app.create_url_adapter(current_request())
        if adapter and path.endswith("/") and adapter.allowed_methods(path.removesuffix("/")):
            problem.detail = SLASH_AT_END
        return problem.response()

    @app.errorhandler(psycopg.Error)
    def respond_to_database_error(error: psycopg.Error) -> Response:
        problem = problem_of_database_error(error, constraints, conflicts)
        if problem is None:
            raise DatabaseBugError(error).with_traceback(error.__traceback__) from None
        return problem.response()

    # For InternalServerError, not Exception: Flask then logs the exception and sends the signal
    # `got_request_exception`, which tools that report errors need.
    @app.errorhandler(InternalServerError)
    def respond_to_bug(_: InternalServerError) -> Response:
        return internal_error().response()
