"""Log one line for each request, and send its id."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

import structlog
from flask import Flask, Response

from todo_api.web.openapi.paths import path_template
from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from collections.abc import Callable

    Observer: TypeAlias = Callable[[str | None, str, int, float], None]


log = structlog.get_logger(__name__)


def log_requests(app: Flask, observe: Observer | None = None) -> None:
    """Send each request's id as `X-Request-Id`, and log one line for each request.

    `observe` is called for each request with the route (or None), method, status and seconds.
    """

    @app.after_request
    def finish_request(response: Response) -> Response:
        request = current_request()
        response.headers.add("X-Request-Id", request.id)
        # The route, not the path, because the path contains text of the client.
        route = path_template(request.url_rule.rule) if request.url_rule else None
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
