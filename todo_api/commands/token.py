"""Print a token for a user of `make run`: `python -m todo_api.commands.token USER_ID`."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from joserfc import jwt
from joserfc.jwk import OctKey

from todo_api.auth.tokens import make_user_id
from todo_api.commands.development import EXAMPLE_USER, load_development_settings
from todo_api.settings import SettingsError, read_environment

if TYPE_CHECKING:
    from todo_api.settings import Settings

LIFETIME = timedelta(hours=12)


def make_token(settings: Settings, user: str) -> str:
    """Return a token for the user, signed with the secret of the settings. Raises SettingsError."""
    if settings.jwt_secret is None or settings.auth_mode != "jwt":
        raise SettingsError(
            "Set JWT_SECRET: the command can sign tokens only for a server with a secret."
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
    """Print a token, or exit with a message."""
    match arguments:
        case [user]:
            try:
                settings = load_development_settings(read_environment())
                token = make_token(settings, user)
            except SettingsError as error:
                sys.exit(str(error))
            user_id = str(make_user_id(settings, user))
            if user_id != user.lower():
                print(f"The user_id of {user} in paths: {user_id}", file=sys.stderr)  # noqa: T201
            print(token)  # noqa: T201
        case _:
            sys.exit("usage: python -m todo_api.commands.token USER_ID")


if __name__ == "__main__":
    main(sys.argv[1:])
