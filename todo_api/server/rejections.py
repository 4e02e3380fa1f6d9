"""Error responses to requests that gunicorn rejects before the application receives them."""

from __future__ import annotations

from http import HTTPStatus

import structlog
from gunicorn.http.errors import (
    ConfigurationProblem,
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)
from uuid_utils import uuid7
from werkzeug.http import http_date

from todo_api.web.headers import POLICY
from todo_api.web.problems import Problem, bug, malformed, problem_of_status

log = structlog.get_logger(__name__)

# Errors of the application (500), although gunicorn's classes are derived from ParseException.
SERVER_ERRORS = (ConfigurationProblem, InvalidResponseHeader, InvalidResponseHeaderName)


def reject(error: Exception, method: str | None) -> bytes:
    """Log a request that failed outside the application, and return its response."""
    problem = rejection(error)
    request_id = str(uuid7())
    fields = {"request_id": request_id, "status": problem.status}
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("unhandled exception", exc_info=error, **fields)
    else:
        # The error's message is not logged, because it may contain text of the client.
        log.info("request", method=None, route=None, error=type(error).__name__, **fields)
    return response_bytes(problem, request_id, method)


def rejection(error: Exception) -> Problem:
    """Return the problem for an exception that was raised outside the application."""
    if not isinstance(error, ParseException) or isinstance(error, SERVER_ERRORS):
        return bug()
    if isinstance(error, LimitRequestLine):
        return problem_of_status(414)
    if isinstance(error, LimitRequestHeaders):
        return problem_of_status(431)
    if isinstance(error, ExpectationFailed):
        return problem_of_status(417)
    return malformed("Send well-formed HTTP/1.1: the server could not parse the request.")


def response_bytes(problem: Problem, request_id: str, method: str | None) -> bytes:
    """Return the complete HTTP/1.1 response. `method` is None if it is unknown."""
    body = problem.body(request_id)
    head = "\r\n".join(
        (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
            f"Date: {http_date()}",
            "Connection: close",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            f"Content-Security-Policy: {POLICY}",
            "Referrer-Policy: no-referrer",
            "X-Content-Type-Options: nosniff",
            f"X-Request-Id: {request_id}",
            "\r\n",
        )
    )
    return head.encode() + (b"" if method == "HEAD" else body)
