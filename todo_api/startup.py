"""Load the settings of the server, and check that its keys have a valid format."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from marshmallow import ValidationError

from todo_api.auth.keys import KeyFormatError, parse_secret, read_public_key
from todo_api.settings import load_server_settings, read_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from todo_api.settings import Settings


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings of the server. Raises SettingsError with every fault."""
    return load_server_settings(
        environ, parse_public_key=check_public_key, parse_secret=check_secret
    )


@cache
def load_process_settings() -> Settings:
    """Return the settings of this process, read at the first call. Raises SettingsError.

    gunicorn's master reads them once, and its workers inherit them. So a worker that starts later
    has the same settings as the other workers, even if `.env` has changed.
    """
    return load_settings(read_environment())


def check_public_key(value: str) -> str:
    """Return the text of the key: the value itself or the content of the file that it names.

    Raises ValidationError.
    """
    try:
        return read_public_key(value)
    except KeyFormatError as error:
        raise ValidationError(str(error)) from None


def check_secret(value: str) -> str:
    """Return the secret. Raises ValidationError if it is not a key for HS256."""
    try:
        parse_secret(value)
    except KeyFormatError as error:
        raise ValidationError(str(error)) from None
    return value
