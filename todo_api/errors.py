"""Every failure's owner: what a client caused becomes a problem, what we caused a logged 500."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import structlog
from flask import Flask, Response
from psycopg.errors import QueryCanceled
from psycopg_pool import PoolTimeout, TooManyRequests
from werkzeug.exceptions import HTTPException, InternalServerError

from todo_api.database import OutcomeUnknownError
from todo_api.keys import KeysUnavailableError
from todo_api.messages import Answer, current_request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from todo_api.connection import Json

log = structlog.get_logger(__name__)

RETRY_AFTER = 1  # seconds
FAULTS_SHOWN = 100

Fault = dict[str, str]

# The last part of a problem's type, and its title, by status.
KIND_OF_STATUS = {
    400: ("malformed", "The request cannot be read"),
    401: ("unauthorized", "Who are you?"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "The path does not know this method"),
    406: ("not-acceptable", "No such representation"),
    409: ("conflict", "The task's state does not allow it"),
    410: ("gone", "Too far back"),
    411: ("length-required", "The body's length is needed"),
    412: ("precondition-failed", "The task has changed"),
    413: ("too-large", "The body is too large"),
    414: ("uri-too-long", "The address is too long"),
    415: ("unsupported-media-type", "The body is of another type"),
    417: ("expectation-failed", "The expectation cannot be met"),
    422: ("invalid", "A value breaks a rule"),
    428: ("precondition-required", "Say which version you mean"),
    431: ("headers-too-large", "The headers are too large"),
    500: ("internal-error", "Our fault"),
    503: ("unavailable", "Not available now"),
}


class Problem(Exception):  # noqa: N818  RFC 9457's name
    """An answer of 400 or above: problem details as RFC 9457 has them.

    `kind` is the last part of its type, where the status has more than one. `errors` are
    `{pointer | parameter | header, detail}`, the pointers as RFC 6901 has them. `current` is the
    JSON of a task.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Iterable[Fault] = (),
        headers: dict[str, str] | None = None,
        current: Json | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.current = current
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers or {}

    def body(self, instance: str) -> bytes:
        """The problem details, of the request of this id."""
        kind, title = KIND_OF_STATUS.get(self.status, ("other", HTTPStatus(self.status).phrase))
        body: dict[str, Any] = {
            "type": f"/problems/{self.kind or kind}",
            "title": title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.errors:
            body["errors"] = self.errors[:FAULTS_SHOWN]
        if self.current is not None:
            body["current"] = orjson.Fragment(self.current)
        return orjson.dumps(body)

    def response(self) -> Response:
        body = self.body(current_request().id)
        fields = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
        return Answer(body, self.status, fields | self.headers)


def malformed(detail: str) -> Problem:
    return Problem(400, detail)


def malformed_header(name: str, detail: str) -> Problem:
    return Problem(
        400,
        "See errors for the header that cannot be read.",
        errors=[{"header": name, "detail": detail}],
    )


def unauthorized(detail: str, challenge: str = "Bearer") -> Problem:
    """A 401 with its challenge, as RFC 6750 (section 3) has it."""
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def not_found() -> Problem:
    """The one answer for what is not there, no longer there, or another user's."""
    return Problem(404, "There is no such thing, or it is not yours.")


def not_acceptable(offered: str) -> Problem:
    return Problem(406, f"The answer would be {offered}.")


def conflict(kind: str, detail: str) -> Problem:
    return Problem(409, detail, kind=kind)


def gone() -> Problem:
    return Problem(410, "What has changed since then is not known any more: start at since=0.")


def length_required() -> Problem:
    return Problem(411, "This server reads no chunked bodies: send Content-Length.")


def precondition_failed(current: Json, etag: str) -> Problem:
    """A 412 that carries the task as it is now, so that a client can go on from there."""
    return Problem(
        412,
        "The task is not as If-Match or If-None-Match has it; current is how it is.",
        headers={"ETag": etag},
        current=current,
    )


def precondition_required() -> Problem:
    return Problem(428, "Send If-Match with the ETag of the task that you mean to change.")


def unsupported_media_type(accepted: Iterable[str]) -> Problem:
    return Problem(415, f"Send the body as {' or '.join(accepted)}.")


def invalid(errors: Iterable[Fault]) -> Problem:
    return Problem(422, "See errors for what is wrong, and where.", errors=errors)


def key_reused() -> Problem:
    detail = "Another request has had this key: a new one needs a key of its own."
    return Problem(
        422,
        "See errors for what is wrong, and where.",
        kind="key-reused",
        errors=[{"header": "Idempotency-Key", "detail": detail}],
    )


def unavailable(detail: str) -> Problem:
    return Problem(503, detail, headers={"Retry-After": str(RETRY_AFTER)})


def bug() -> Problem:
    return Problem(500, "The server's log tells more under the id in instance.")


# The framework's own refusals, in our words: its own are for a person with a browser.
DETAIL_OF_STATUS = {
    404: not_found().detail,
    405: "The Allow header names the methods that this path knows.",
    413: "A body has 128 KiB at most.",
}


def of_http_exception(error: HTTPException) -> Problem:
    status = error.code or 500
    detail = DETAIL_OF_STATUS.get(status) or error.description or ""
    kept = ("Allow", "Retry-After")
    headers = {name: value for name, value in error.get_headers() if name in kept}
    return Problem(status, detail, headers=headers)


# What a request can cause in the database though its schema let it pass. Any other violation
# of a constraint is our bug, and a 500.
POINTER_OF_CONSTRAINT = {
    "ck_tasks_title_length": ("/title", "Must have 1 to 255 characters."),
    "ck_tasks_title_stripped": ("/title", "Must not have white space around it."),
    "ck_tasks_description_length": ("/description", "Must have at most 10000 characters."),
}

# SQLSTATEs of a database that has no room, no time or no will for us (PostgreSQL, appendix A).
UNAVAILABLE = frozenset(
    {
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53300",  # too_many_connections
        "55P03",  # lock_not_available
        "57014",  # query_canceled
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
    }
)


# What there is too little of, as far as it can be told.
DETAIL_OF_WANT: dict[type[psycopg.Error], str] = {
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


def of_database_error(error: psycopg.Error) -> Problem | None:
    """The problem of an SQLSTATE or a constraint; None if the failure is a bug of ours."""
    fault = POINTER_OF_CONSTRAINT.get(error.diag.constraint_name or "")
    if fault is not None:
        pointer, detail = fault
        return invalid([{"pointer": pointer, "detail": detail}])
    if isinstance(error, OutcomeUnknownError):
        log.warning("outcome unknown", cause=type(error.__cause__).__name__)
        return unavailable(
            "The database was lost on the way: whether the change was made cannot be told. "
            "Read before you ask again, or ask again with the same If-Match or Idempotency-Key."
        )
    # Without an SQLSTATE: the connection broke, or the pool had none to give.
    lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    if lost or error.sqlstate in UNAVAILABLE:
        log.warning("database unavailable", error=type(error).__name__, sqlstate=error.sqlstate)
        return unavailable(DETAIL_OF_WANT.get(type(error), "The database is not well. Try again."))
    return None


def register_error_handlers(app: Flask) -> None:
    """Answer every failure of the application with a problem."""

    @app.errorhandler(Problem)
    def of_problem(problem: Problem) -> Response:
        return problem.response()

    @app.errorhandler(HTTPException)
    def of_refusal(error: HTTPException) -> Response:
        return of_http_exception(error).response()

    @app.errorhandler(psycopg.Error)
    def of_failed_statement(error: psycopg.Error) -> Response:
        problem = of_database_error(error)
        if problem is None:
            raise DatabaseBugError(error).with_traceback(error.__traceback__) from None
        return problem.response()

    @app.errorhandler(KeysUnavailableError)
    def of_missing_keys(_: KeysUnavailableError) -> Response:
        return unavailable(
            "The keys of the token's issuer cannot be had now. Try again."
        ).response()

    # Not of Exception: Flask then logs a bug, and signals `got_request_exception`, on which tools
    # that report errors rely.
    @app.errorhandler(InternalServerError)
    def of_bug(_: InternalServerError) -> Response:
        return bug().response()
