"""Problem details (RFC 9457): an exception for error responses, and a function for each type.

Exception
    Problem     raised for a faulty request; web/errors.py turns it into a response
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from todo_api.web.requests import current_request
from todo_api.web.responses import PROBLEM, BytesResponse
from todo_api.web.schemas import FAULTS_SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RETRY_AFTER = 1  # seconds

# `{pointer | parameter | header, detail}`: the faulty part of a request, and the fault. A pointer
# is a JSON Pointer (RFC 6901).
Fault = dict[str, str]

# The last part of a problem's type, and its title, by status.
KIND_OF_STATUS = {
    400: ("malformed", "Bad request"),
    401: ("unauthorized", "Unauthorized"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    406: ("not-acceptable", "Not acceptable"),
    409: ("conflict", "Conflict"),
    410: ("gone", "Gone"),
    411: ("length-required", "Length required"),
    412: ("precondition-failed", "Precondition failed"),
    413: ("too-large", "Content too large"),
    414: ("uri-too-long", "URI too long"),
    415: ("unsupported-media-type", "Unsupported media type"),
    417: ("expectation-failed", "Expectation failed"),
    422: ("invalid", "Unprocessable content"),
    428: ("precondition-required", "Precondition required"),
    431: ("headers-too-large", "Request header fields too large"),
    500: ("internal-error", "Internal server error"),
    503: ("unavailable", "Service unavailable"),
}


class Problem(Exception):  # noqa: N818  RFC 9457's name
    """A response of 400 or above.

    `kind` is the last part of its type, if not that of KIND_OF_STATUS. `current` is the JSON of the
    resource as it is now.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Iterable[Fault] = (),
        headers: dict[str, str] | None = None,
        current: bytes | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.current = current
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers or {}

    def body(self, instance: str) -> bytes:
        """Return the problem details as JSON, for the request with this id."""
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

    def response(self) -> BytesResponse:
        """Return the response to the current request."""
        body = self.body(current_request().id)
        headers = {"Content-Type": PROBLEM, "Cache-Control": "no-store"}
        return BytesResponse(body, self.status, headers | self.headers)


def malformed(detail: str) -> Problem:
    return Problem(400, detail)


def malformed_header(name: str, detail: str) -> Problem:
    return Problem(
        400,
        "Correct the header in errors.",
        errors=[{"header": name, "detail": detail}],
    )


def unauthorized(detail: str, challenge: str = "Bearer") -> Problem:
    """Return a 401 with its challenge (RFC 6750, section 3)."""
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def not_found() -> Problem:
    """Return the 404: the same for a resource that does not exist and for another user's."""
    return Problem(404, "It does not exist, or it is not yours.")


def not_acceptable(offered: str) -> Problem:
    return Problem(406, f"The response would be {offered}: send Accept: {offered}, or no Accept.")


def conflict(kind: str, detail: str) -> Problem:
    return Problem(409, detail, kind=kind)


def gone() -> Problem:
    return Problem(
        410, "What has changed since then is no longer known: start a full sync with since=0."
    )


def length_required() -> Problem:
    return Problem(411, "This server reads no chunked bodies: send Content-Length.")


def precondition_failed(current: bytes, etag: str) -> Problem:
    """Return a 412 with the resource as it is now, so that the client can merge its change."""
    return Problem(
        412,
        "It is not at a revision that If-Match or If-None-Match allows: go on from current.",
        headers={"ETag": etag},
        current=current,
    )


def precondition_required() -> Problem:
    return Problem(428, "Send If-Match with the ETag of what you mean to change.")


def unsupported_media_type(accepted: Sequence[str], method: str) -> Problem:
    """Return a 415; that of a PATCH has `Accept-Patch` (RFC 5789, section 2.2)."""
    headers = {"Accept-Patch": ", ".join(accepted)} if method == "PATCH" else {}
    return Problem(415, f"Send the body as {' or '.join(accepted)}.", headers=headers)


def invalid(errors: Iterable[Fault]) -> Problem:
    return Problem(422, "Correct what errors lists.", errors=errors)


def key_reused() -> Problem:
    detail = "Another request has used this key: use a new key for each new request."
    return Problem(
        422,
        "Correct what errors lists.",
        kind="key-reused",
        errors=[{"header": "Idempotency-Key", "detail": detail}],
    )


def unavailable(detail: str) -> Problem:
    return Problem(503, detail, headers={"Retry-After": str(RETRY_AFTER)})


def bug() -> Problem:
    return Problem(500, "The server's log has more, under the id in instance.")


# For errors that Flask and werkzeug raise, whose own texts are HTML for browsers.
DETAIL_OF_STATUS = {
    404: "No route has this path: /openapi.json lists all routes.",
    405: "Use one of the methods in the Allow header.",
    413: "Send a body of at most 128 KiB.",
}
