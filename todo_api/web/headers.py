"""Headers for browsers: security policies, and the origins that may call the API (CORS)."""

from __future__ import annotations

from flask import Flask, Response

from todo_api.web.requests import current_request
from todo_api.web.responses import BytesResponse

# No page may frame a response, and no script in a response runs. /docs has its own policy.
POLICY = "default-src 'none'; frame-ancestors 'none'"

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"

REQUEST_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-Id"
)

EXPOSED = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-Id"

PREFLIGHT_AGE = 7200  # seconds; browsers cache a preflight no longer


def send_security_headers(app: Flask) -> None:
    """Forbid browsers to guess a response's type, to frame it, and to send its URL as Referer."""

    @app.after_request
    def add_security_headers(response: Response) -> Response:
        headers = response.headers
        headers.add("X-Content-Type-Options", "nosniff")
        headers.add("Referrer-Policy", "no-referrer")
        names = {name.lower() for name, _ in headers}
        if "content-security-policy" not in names:
            headers.add("Content-Security-Policy", POLICY)
        if "cache-control" not in names:
            headers.add("Cache-Control", "no-store")
        return response


def enable_cors(app: Flask, origins: tuple[str, ...]) -> None:
    """Let pages of these origins call the API (CORS, in the Fetch standard).

    A preflight has no token, so it gets its response before authentication. CORS credentials are
    not allowed: the API uses no cookies, and a page sends its token in a header.
    """

    def allowed_origin() -> str | None:
        origin = current_request().header("Origin")
        return origin if origin in origins else None

    @app.before_request
    def respond_to_preflight() -> Response | None:
        request = current_request()
        if request.method != "OPTIONS" or request.header("Access-Control-Request-Method") is None:
            return None
        allowances = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_AGE),
        }
        return BytesResponse(None, 204, allowances if allowed_origin() else {})

    @app.after_request
    def add_cors_headers(response: Response) -> Response:
        response.vary.add("Origin")
        if origin := allowed_origin():
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response
