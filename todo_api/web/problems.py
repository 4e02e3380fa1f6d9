"""Problem details (RFC 9457): an exception for error responses, and a function for each kind.

Exception
    Problem     an error response; web/errors.py converts it
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from todo_api.web.problem_kinds import KINDS_BY_NAME, KINDS_BY_STATUS, OTHER, Fault
from todo_api.web.requests import current_request
from todo_api.web.responses import PROBLEM, BytesResponse
from todo_api.web.schemas import FAULTS_SHOWN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from todo_api.web.problem_kinds import ProblemKind

RETRY_AFTER = 1  # seconds


class Problem(Exception):  # noqa: N818  RFC 9457's name
    """A response of 400 or above.

    `kind` is the name of a problem kind; the default is the kind of the status. `current` is the
    JSON of the resource as it is now. `quota` has the members `limit` and `used` of a quota.
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
        quota: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = KINDS_BY_NAME[kind] if kind else KINDS_BY_STATUS.get(status, OTHER)
        self.title = HTTPStatus(status).phrase if self.kind is OTHER else self.kind.title
        self.current = current
        self.quota = quota or {}
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = headers or {}

    def body(self, instance: str) -> bytes:
        """Return the problem details as JSON, for the request with this id."""
        body: dict[str, Any] = {
            "type": self.kind.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.errors:
            body["errors"] = self.errors[:FAULTS_SHOWN]
        body |= self.quota
        if self.current is not None:
            body["current"] = orjson.Fragment(self.current)
        return orjson.dumps(body)

    def response(self) -> BytesResponse:
        """Return the response to the current request."""
        body = self.body(current_request().id)
        headers = {"Content-Type": PROBLEM, "Cache-Control": "no-store"}
        return BytesResponse(body, self.status, headers | self.headers)


def example_problem(kind: ProblemKind, current: bytes) -> Problem:
    """Return the example that the kind declares. `current` is the JSON of an example resource."""
    return Problem(
        kind.status,
        kind.detail,
        kind=kind.name,
        errors=kind.errors,
        current=current if kind.has_current else None,
        quota=kind.quota,
    )


def problem_of_status(status: int) -> Problem:
    """Return the problem of a status, with the detail that its kind declares."""
    return Problem(status, KINDS_BY_STATUS[status].detail)


def malformed(detail: str) -> Problem:
    return Problem(400, detail)


def malformed_header(name: str, detail: str) -> Problem:
    return Problem(
        400,
        "Correct the header field that the member `errors` names.",
        errors=[{"header": name, "detail": detail}],
    )


def unauthorized(detail: str, challenge: str = "Bearer") -> Problem:
    """Return a 401 with its challenge (RFC 6750, section 3)."""
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def not_found() -> Problem:
    """Return the 404, which is the same for a missing resource and for another user's."""
    return problem_of_status(404)


def not_acceptable(offered: str) -> Problem:
    return Problem(406, f"Send Accept: {offered}, or no Accept header.")


def conflict(kind: str, quota: Mapping[str, int] | None = None) -> Problem:
    """Return the 409 of this kind, with the detail that the kind declares."""
    return Problem(409, KINDS_BY_NAME[kind].detail, kind=kind, quota=quota)


def gone() -> Problem:
    return problem_of_status(410)


def length_required() -> Problem:
    return problem_of_status(411)


def precondition_failed(current: bytes, etag: str) -> Problem:
    """Return a 412 with the resource as it is now; the client can merge its change into it."""
    return Problem(412, KINDS_BY_STATUS[412].detail, headers={"ETag": etag}, current=current)


def precondition_required() -> Problem:
    return problem_of_status(428)


def unsupported_media_type(accepted: Sequence[str], method: str) -> Problem:
    """Return a 415. After a PATCH, it has `Accept-Patch` (RFC 5789, section 2.2)."""
    headers = {"Accept-Patch": ", ".join(accepted)} if method == "PATCH" else {}
    return Problem(
        415, f"Send the body with Content-Type: {' or '.join(accepted)}.", headers=headers
    )


def invalid(errors: Iterable[Fault]) -> Problem:
    return Problem(422, KINDS_BY_STATUS[422].detail, errors=errors)


def key_reused() -> Problem:
    kind = KINDS_BY_NAME["key-reused"]
    return Problem(422, kind.detail, kind=kind.name, errors=kind.errors)


def unavailable(detail: str) -> Problem:
    return Problem(503, detail, headers={"Retry-After": str(RETRY_AFTER)})


def internal_error() -> Problem:
    return problem_of_status(500)


# Details for these statuses. They replace the texts of Flask and werkzeug, which people read in
# browsers.
DETAIL_OF_STATUS = {
    404: "No route has this path: /openapi.json lists all routes.",
    405: KINDS_BY_STATUS[405].detail,
    413: KINDS_BY_STATUS[413].detail,
}
