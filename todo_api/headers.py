"""What every answer tells browsers: what they may do with it, and from where they may ask."""

from __future__ import annotations

from flask import Flask, Response

from todo_api.messages import Answer, current_request

# An answer is data: no page may frame it, and nothing in it runs. The API's page has its own.
POLICY = "default-src 'none'; frame-ancestors 'none'"

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-Id"
)
EXPOSED = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-Id"
PREFLIGHT_AGE = 7200  # seconds: more than this no browser keeps


def send_security_headers(app: Flask) -> None:
    """Let no answer be taken for a type that it does not say, be framed, or leak its address."""

    @app.after_request
    def secure(response: Response) -> Response:
        headers = response.headers
        headers.add("X-Content-Type-Options", "nosniff")
        headers.add("Referrer-Policy", "no-referrer")
        given = {name.lower() for name, _ in headers}
        if "content-security-policy" not in given:
            headers.add("Content-Security-Policy", POLICY)
        if "cache-control" not in given:
            headers.add("Cache-Control", "no-store")
        return response


def share_with(app: Flask, origins: tuple[str, ...]) -> None:
    """Let pages of these origins call the API (CORS, as the Fetch standard has it).

    A preflight carries no token, so it is answered before one is asked for. No credentials are
    allowed: tokens are sent by the page's own code, and cookies mean nothing here.
    """

    def allowed() -> str | None:
        origin = current_request().field("Origin")
        return origin if origin in origins else None

    @app.before_request
    def preflight() -> Response | None:
        request = current_request()
        if request.method != "OPTIONS" or request.field("Access-Control-Request-Method") is None:
            return None
        allowances = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_AGE),
        }
        return Answer(None, 204, allowances if allowed() else {})

    @app.after_request
    def share(response: Response) -> Response:
        response.vary.add("Origin")
        if origin := allowed():
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response
