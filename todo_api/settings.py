"""Settings from the environment, checked whole before anything starts."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict


class SettingsError(Exception):
    """The environment is not fit to start with; the message names every fault."""


def postgresql_url(value: str) -> None:
    """A `postgresql://` or `postgres://` URL that libpq can read, else ValidationError."""
    # The value is never repeated: it may hold a password.
    if not re.match(r"postgres(ql)?://", value):
        raise ValidationError("Not a postgresql:// URL.")
    try:
        conninfo_to_dict(value)
    except ProgrammingError as error:
        raise ValidationError("Not a URL that libpq can read.") from error


class DatabaseEnvironment(Schema):
    """What a migration needs of the environment."""

    class Meta:
        unknown = EXCLUDE

    DATABASE_URL = fields.String(required=True, validate=postgresql_url)
    MIGRATION_DATABASE_URL = fields.String(load_default=None, validate=postgresql_url)
    LOG_LEVEL = fields.String(
        load_default="info", validate=validate.OneOf(["debug", "info", "warning", "error"])
    )


class Environment(DatabaseEnvironment):
    """What the server needs of the environment. A name is a variable's, a default its own."""

    AUTH_MODE = fields.String(required=True, validate=validate.OneOf(["none"]))
    HOST = fields.String(load_default="127.0.0.1", validate=validate.Length(min=1))
    PORT = fields.Integer(load_default=8000, validate=validate.Range(1, 65535))
    WEB_CONCURRENCY = fields.Integer(load_default=2, validate=validate.Range(1, 256))
    WEB_THREADS = fields.Integer(load_default=4, validate=validate.Range(1, 64))
    REQUEST_TIMEOUT = fields.Float(load_default=5.0, validate=validate.Range(0.1, 60))
    DATABASE_PREPARE = fields.Boolean(load_default=True)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """Where the database is. `migration_database_url` is a direct one: no pooler between."""

    database_url: str
    migration_database_url: str
    log_level: str


@dataclass(frozen=True, kw_only=True)
class Settings(DatabaseSettings):
    """All that the server is told from outside; README.md says what each setting does."""

    auth_mode: str
    host: str
    port: int
    web_concurrency: int
    web_threads: int
    request_timeout: float
    database_prepare: bool


def environment() -> dict[str, str]:
    """The process's environment over what `.env` in the working directory says."""
    values = dotenv_values(Path(".env"))
    return {name: value for name, value in values.items() if value is not None} | os.environ


def load_database_settings(environ: Mapping[str, str]) -> DatabaseSettings:
    """What a migration needs, or SettingsError with every fault."""
    return DatabaseSettings(**checked(DatabaseEnvironment(), environ))


def load_settings(environ: Mapping[str, str]) -> Settings:
    """What the server needs, or SettingsError with every fault."""
    return Settings(**checked(Environment(), environ))


def checked(schema: Schema, environ: Mapping[str, str]) -> dict[str, Any]:
    # An empty variable is an unset one: what `NAME=` in a .env file or a compose file means.
    given = {name: value for name, value in environ.items() if value}
    try:
        values = schema.load(given)
    except ValidationError as error:
        faults = (
            f"  {name}: {' '.join(messages)}" for name, messages in error.messages_dict.items()
        )
        raise SettingsError("\n".join(["The settings are not right:", *faults])) from None
    values["MIGRATION_DATABASE_URL"] = values["MIGRATION_DATABASE_URL"] or values["DATABASE_URL"]
    return {name.lower(): value for name, value in values.items()}
