"""Log one line for each request, and send its id."""

from __future__ import annotations

import re
import time
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import structlog
from flask import Flask, Response

from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from collections.abc import Callable

    Observer: TypeAlias = Callable[[str | None, str, int, float], None]


log = structlog.get_logger(__name__)


@cache
def template(rule: str) -> str:
    """Flask's rule as the OpenAPI document spells it: `/api/{user_id}/tasks`."""
    return re.sub("<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule)


def log_requests(app: Flask, observe: Observer | None = None) -> None:
    """Answer every request's id as `X-Request-Id`, and log one line for each.

    `observe`, if there is one, is told of each: the route or None, the method, status and seconds.
    """

    @app.after_request
    def end(response: Response) -> Response:
        request = current_request()
        response.headers.add("X-Request-Id", request.id)
        # Not the path, which holds what the client wrote.
        route = template(request.url_rule.rule) if request.url_rule else None
        seconds = time.monotonic() - request.started
        log.info(
            "request",
            method=request.method,
            route=route,
            status=response.status_code,
            duration_ms=round(seconds * 1000, 2),
            user_id=request.user_id,
        )
        if observe:
            observe(route, request.method, response.status_code, seconds)
        return response
