"""What comes in and what goes out: flask's request and response, fitted to this application."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, cast

import flask
from uuid_utils import uuid7
from werkzeug.datastructures import Headers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

# A request id goes into log lines, headers and problems as it is: nothing that needs quoting.
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Request(flask.Request):
    """A request, when it began, its id, and what is found out about it before its view runs.

    The id is the client's own, or one that we made. `identity` is what its token says, if it needs
    one; `user_id` whom its path or token names; `body` the JSON that it carries.
    """

    identity: Any = None
    user_id: UUID | None = None
    body: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started = time.monotonic()
        given = self.field("X-Request-Id") or ""
        self.id = given if WELL_FORMED.fullmatch(given) else str(uuid7())

    def field(self, name: str) -> str | None:
        """The header field of this name: `headers.get`, at a tenth of its cost."""
        value: str | None = self.environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value


def current_request() -> Request:
    """The request that is served, itself: to look at it through flask's proxy takes 1 us each time.

    So whoever needs more than one thing of it takes it once.
    """
    return cast("Request", flask.request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001  documented


class Answer(flask.Response):
    """A response whose body is there, whole, with the header fields that are given."""

    default_mimetype = None

    def __init__(self, body: bytes | None, status: int, fields: Mapping[str, str]) -> None:
        headers = Headers()
        for name, value in fields.items():
            headers.add(name, value)
        if body is not None:
            headers.add("Content-Length", str(len(body)))
        super().__init__(() if body is None else (body,), status, headers)
