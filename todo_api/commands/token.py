"""Print a token for a user of `make run`: `python -m todo_api.commands.token USER_ID`."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from joserfc import jwt
from joserfc.jwk import OctKey

from todo_api.commands.development import EXAMPLE_USER, load_development_settings
from todo_api.settings import SettingsError, read_environment

if TYPE_CHECKING:
    from todo_api.settings import Settings

LIFETIME = timedelta(hours=12)


def make_token(settings: Settings, user: str) -> str:
    """Return a token for the user, signed with the secret of the settings. Raises SettingsError."""
    if settings.jwt_secret is None or settings.auth_mode != "jwt":
        raise SettingsError(
            "Set JWT_SECRET: a token can be made only if the server verifies it with a secret."
        )
    if not user:
        raise SettingsError(f"Set USER_ID: make token USER_ID={EXAMPLE_USER}")
    now = int(time.time())
    claims: dict[str, Any] = {
        settings.jwt_user_claim: user,
        "iat": now,
        "exp": now + int(LIFETIME.total_seconds()),
    }
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(settings.jwt_secret))


def main(arguments: list[str]) -> None:
    """Print a token; exit with a message if none can be made."""
    match arguments:
        case [user]:
            try:
                print(make_token(load_development_settings(read_environment()), user))  # noqa: T201
            except SettingsError as error:
                sys.exit(str(error))
        case _:
            sys.exit("usage: python -m todo_api.commands.token USER_ID")


if __name__ == "__main__":
    main(sys.argv[1:])
