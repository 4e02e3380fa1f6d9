"""The settings of `make run` and `make token`, with a secret of this checkout if none is named."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from todo_api.settings import KEY_SOURCES
from todo_api.startup import load_settings

if TYPE_CHECKING:
    from todo_api.settings import Settings

# Data, log, lock and secret of the server of `make run`, ignored by git.
FOLDER = Path(".dev")

EXAMPLE_USER = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"


def load_development_settings(environ: dict[str, str]) -> Settings:
    """Return the settings, for which neither a database nor a key is required.

    Raises SettingsError with every fault.
    """
    return load_settings({"DATABASE_URL": "postgresql://"} | environ | read_missing_secret(environ))


def read_missing_secret(environ: dict[str, str]) -> dict[str, str]:
    """Return this checkout's secret as JWT_SECRET, or nothing if the environment needs none.

    Other servers accept no token that is signed with it.
    """
    if environ.get("AUTH_MODE", "").lower() not in ("", "jwt") or environ.keys() & {*KEY_SOURCES}:
        return {}
    return {"JWT_SECRET": read_secret()}


def read_secret() -> str:
    """Return the secret of this checkout, which is made at its first use."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "secret"
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123  with its mode from the start
            file.write(secrets.token_hex(32))
    return path.read_text()
