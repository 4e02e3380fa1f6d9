"""Flask's request, with an id, a start time, and the results of checks before the view."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, cast

import flask
from uuid_utils import uuid7

if TYPE_CHECKING:
    from uuid import UUID


READS = {"GET", "HEAD"}


# A request id is in log lines, headers and problems, so it has only characters that need no
# escaping.
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Request(flask.Request):
    """A request with its start time (time.monotonic) and its id: the client's id or a new one.

    These attributes are set before the view runs:

    identity    the identity of the token, if the route requires a token
    user_id     the user of the path, or of the token
    body        the parsed JSON body
    """

    identity: Any = None
    user_id: UUID | None = None
    body: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started = time.monotonic()
        client_id = self.header("X-Request-Id") or ""
        self.id = client_id if WELL_FORMED.fullmatch(client_id) else str(uuid7())

    def header(self, name: str) -> str | None:
        """Return the header field of this name. `headers.get` takes ten times as long."""
        value: str | None = self.environ.get(f"HTTP_{name.upper().replace('-', '_')}")
        return value


def current_request() -> Request:
    """Return the request itself, because each read of an attribute of Flask's proxy takes 1 us."""
    return cast("Request", flask.request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001  documented
