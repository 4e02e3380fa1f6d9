"""The settings of `make run` and `make token`, with a generated secret if no key is set."""

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

# `make run` keeps its data, log, lock and secret in this folder, which git ignores.
FOLDER = Path(".dev")

EXAMPLE_USER = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"


def load_development_settings(environ: dict[str, str]) -> Settings:
    """Return the settings. `environ` may have no DATABASE_URL and no key.

    Raises SettingsError with every fault.
    """
    return load_settings({"DATABASE_URL": "postgresql://"} | environ | default_secret(environ))


def default_secret(environ: dict[str, str]) -> dict[str, str]:
    """Return the generated secret as JWT_SECRET, or nothing if the environment needs no secret.

    The secret belongs to this checkout: other servers refuse tokens that are signed with it.
    """
    if environ.get("AUTH_MODE", "").lower() not in ("", "jwt") or environ.keys() & {*KEY_SOURCES}:
        return {}
    return {"JWT_SECRET": read_secret()}


def read_secret() -> str:
    """Return the secret of this checkout; generate it at the first use."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "secret"
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123  Path.open cannot set 0600 at creation
            file.write(secrets.token_hex(32))
    return path.read_text()
