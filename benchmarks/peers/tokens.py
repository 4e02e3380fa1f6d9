"""The authentication of the Python peers. A token is verified once, then cached by its digest."""

from __future__ import annotations

import hashlib
import os
import time

import jwt

SECRET = os.environ.get("JWT_SECRET", "")
VERIFIED_TOKENS = 10_000

verified: dict[bytes, tuple[str, float]] = {}


def user_of(authorization: str | None) -> str | None:
    """Return the user of a valid Authorization header, or None."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    digest = hashlib.sha256(token.encode()).digest()
    cached = verified.get(digest)
    if cached is None:
        try:
            claims = jwt.decode(
                token, SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]}
            )
        except jwt.InvalidTokenError:
            return None
        if len(verified) >= VERIFIED_TOKENS:
            del verified[next(iter(verified))]
        cached = verified[digest] = (claims["sub"], claims["exp"])
    user, expires_at = cached
    return user if expires_at > time.time() else None
