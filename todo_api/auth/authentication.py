"""Require a token for every route, and check that the path belongs to the token's user."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flask import Flask

from todo_api.auth.jwks import FetchTimes, IssuerKeys
from todo_api.auth.keys import (
    FixedKey,
    Keys,
    KeysUnavailableError,
    parse_public_key,
    parse_secret,
)
from todo_api.auth.tokens import TOKEN_BYTES, Verifier, invalid_token
from todo_api.metrics import KeySetMetrics, Metrics
from todo_api.web.problems import not_found, unauthorized, unavailable
from todo_api.web.requests import Request, current_request
from todo_api.web.validation import SESSION

if TYPE_CHECKING:
    from todo_api.settings import Settings
    from todo_api.web.responses import BytesResponse

# An Authorization header (RFC 6750, section 2.1) with a JWS (RFC 7515, section 7.1).
BEARER = re.compile(r"Bearer +([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)


def make_keys(settings: Settings, metrics: Metrics, fetch_times: FetchTimes | None = None) -> Keys:
    """Return the keys that the settings name. `fetch_times` applies to JWT_JWKS_URL only."""
    if settings.jwt_jwks_url:
        report = KeySetMetrics(metrics).report_fetch
        return IssuerKeys(settings.jwt_jwks_url, fetch_times, report=report)
    if settings.jwt_public_key:
        return FixedKey(parse_public_key(settings.jwt_public_key))
    return FixedKey(parse_secret(settings.jwt_secret or ""))


def require_tokens(app: Flask, verifier: Verifier) -> None:
    """Refuse requests without a valid token (401), and paths of another user (404).

    Every path requires a token, also a path without a route. Only the routes of blueprints with
    `requires_token=False` require none.
    """

    @app.before_request
    def authenticate() -> None:
        request = current_request()
        blueprint = app.blueprints.get(request.blueprint or "")
        if not getattr(blueprint, "requires_token", True):
            return
        request.identity = identity = verifier.identify(read_bearer_token(request))
        request.user_id = identity.user_id
        owner = read_owner(request.path)
        if owner is not None and owner.lower() != str(identity.user_id):
            raise not_found()

    @app.errorhandler(KeysUnavailableError)
    def report_unavailable_keys(_: KeysUnavailableError) -> BytesResponse:
        return unavailable(
            "Try again after Retry-After seconds: the keys of the token's issuer cannot be fetched."
        ).response()


def read_bearer_token(request: Request) -> str:
    """Return the token of the Authorization header. Raises a Problem (401)."""
    field = request.header("Authorization") or ""
    if not field.lower().startswith("bearer "):
        raise unauthorized("Send a token: Authorization: Bearer TOKEN.")
    if len(field) > TOKEN_BYTES:
        raise invalid_token("Send a token with at most 8 KiB.")
    match = BEARER.fullmatch(field)
    if match is None:
        raise invalid_token("Send one token of three parts: Authorization: Bearer TOKEN.")
    return match[1]


def read_owner(path: str) -> str | None:
    """Return the user id in a path below /api as text, also if the path has no route."""
    _, api, *rest = path.split("/", 3)
    return rest[0] if api == "api" and rest and path != SESSION else None
