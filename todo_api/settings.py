"""Settings from the environment, checked whole before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from todo_api.auth.keys import KeyFormatError, parse_public_key, parse_secret

LOOPBACK = ("127.0.0.1", "::1", "localhost")


KEY_SOURCES = ("JWT_JWKS_URL", "JWT_PUBLIC_KEY", "JWT_SECRET")


# As a browser writes it: in lower case, no path, no user, and no port that goes without saying.
ORIGIN = re.compile(r"(?!https://.*:443$|http://.*:80$)https?://[a-z0-9.\-_\[\]:]+")


# The characters that delimit the parts of a URL (RFC 3986, section 2.2), but for the colon, which
# every reader of URLs takes for a part of the password.
MISREAD = re.compile(r"[/?#\[\]@]")
PORTS = range(1, 65536)
PERCENT_ENCODE = "Percent-encode special characters in the password: %40 for @, %2F for /"


class SettingsError(Exception):
    """The environment is not fit to start with; the message names every fault."""


def postgresql_url(value: str) -> None:
    """Raise ValidationError unless libpq reads the `postgresql://` URL as it is meant.

    libpq ends the password at the first `@` and takes the rest of it for the host's name, which
    its errors and the log then repeat; with a `/` before it, for the port or the database's name.
    """
    # No message repeats the value, or a part of it: it may hold a password.
    scheme = re.match(r"postgres(ql)?://", value)
    if not scheme:
        raise ValidationError("Not a postgresql:// URL.")
    userinfo, at, rest = value[scheme.end() :].partition("@")
    if at and (MISREAD.search(userinfo) or "@" in rest):
        raise ValidationError(f"{PERCENT_ENCODE}.")
    try:
        parameters = conninfo_to_dict(value)
    except (ProgrammingError, UnicodeError):
        raise ValidationError(f"Not a URL that libpq can read. {PERCENT_ENCODE}.") from None
    # One for each host; an empty one is the default.
    ports = filter(None, str(parameters.get("port", "")).split(","))
    if not all(re.fullmatch("[0-9]{1,5}", port) and int(port) in PORTS for port in ports):
        raise ValidationError(f"A port is a number from 1 to 65535. {PERCENT_ENCODE}.")


def jwks_url(value: str) -> None:
    """An https:// URL, or http:// to this machine, else ValidationError."""
    try:
        parts = urlsplit(value)
        local = parts.scheme == "http" and parts.hostname in LOOPBACK
        fit = (
            not re.search(r"\s", value)
            and parts.hostname
            and (parts.scheme == "https" or local)
            and parts.port != 0
        )
    except ValueError:  # a port or an address that is none
        fit = False
    if not fit:
        raise ValidationError("Must be an https:// URL; http:// is for loopback only.")
    if "@" in parts.netloc:
        raise ValidationError("Must not hold a password: it would be logged, and is not sent.")


class PublicKey(fields.String):
    """A PEM or a JSON Web Key, or the path of a file that holds one."""

    def _deserialize(self, value: str, *_: Any, **__: Any) -> str:
        # Where a variable has one line only, as in many consoles, line ends are written out.
        text = value.replace("\\n", "\n")
        if not text.lstrip().startswith(("-----", "{")):
            try:
                text = Path(value).read_text(encoding="utf-8")
            except (OSError, ValueError):
                raise ValidationError("There is no such file, and it is no key.") from None
        try:
            parse_public_key(text)
        except KeyFormatError as error:
            raise ValidationError(str(error)) from None
        return text


def secret(value: str) -> None:
    try:
        parse_secret(value)
    except KeyFormatError as error:
        raise ValidationError(str(error)) from None


class Origins(fields.String):
    """Origins with commas between: `https://app.example,https://admin.example`."""

    def _deserialize(self, value: str, *_: Any, **__: Any) -> tuple[str, ...]:  # type: ignore[override]
        origins = tuple(origin.strip() for origin in value.split(","))
        if not all(ORIGIN.fullmatch(origin) for origin in origins):
            raise ValidationError("Each must be an origin: https://app.example, without a path.")
        return origins


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

    AUTH_MODE = fields.String(load_default="jwt", validate=validate.OneOf(["jwt", "none"]))
    JWT_JWKS_URL = fields.String(load_default=None, validate=jwks_url)
    JWT_PUBLIC_KEY = PublicKey(load_default=None)
    JWT_SECRET = fields.String(load_default=None, validate=secret)
    JWT_ISSUER = fields.String(load_default=None)
    JWT_AUDIENCE = fields.String(load_default=None)
    JWT_USER_CLAIM = fields.String(load_default="sub")
    REQUIRE_IF_MATCH = fields.Boolean(load_default=False)
    CORS_ORIGINS = Origins(load_default=())
    HOST = fields.String(load_default="127.0.0.1", validate=validate.Length(min=1))
    PORT = fields.Integer(load_default=8000, validate=validate.Range(1, 65535))
    WEB_CONCURRENCY = fields.Integer(load_default=2, validate=validate.Range(1, 256))
    WEB_THREADS = fields.Integer(load_default=4, validate=validate.Range(1, 64))
    REQUEST_TIMEOUT = fields.Float(load_default=5.0, validate=validate.Range(0.1, 60))
    DATABASE_PREPARE = fields.Boolean(load_default=True)
    METRICS = fields.Boolean(load_default=False)

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def one_source_of_keys(self, _: Any, given: Mapping[str, str], **__: Any) -> None:
        if given.get("AUTH_MODE", "jwt") != "jwt":
            return
        sources = [name for name in KEY_SOURCES if name in given]
        if len(sources) != 1:
            what = (
                f"Only one of these: {' and '.join(sources)}."
                if sources
                else (f"Needs one of {', '.join(KEY_SOURCES)} to verify tokens with.")
            )
            raise ValidationError(what, "AUTH_MODE")

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def issuer_of_a_key_set(self, _: Any, given: Mapping[str, str], **__: Any) -> None:
        # Many services share an issuer's keys: without these, their tokens would do here.
        if given.get("AUTH_MODE", "jwt") == "jwt" and "JWT_JWKS_URL" in given:
            missing = {
                name: ["Must be set with JWT_JWKS_URL."]
                for name in ("JWT_ISSUER", "JWT_AUDIENCE")
                if name not in given
            }
            if missing:
                raise ValidationError(missing)


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
    jwt_jwks_url: str | None
    jwt_public_key: str | None
    jwt_secret: str | None
    jwt_issuer: str | None
    jwt_audience: str | None
    jwt_user_claim: str
    require_if_match: bool
    cors_origins: tuple[str, ...]
    host: str
    port: int
    web_concurrency: int
    web_threads: int
    request_timeout: float
    database_prepare: bool
    metrics: bool


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


@cache
def server_settings() -> Settings:
    """What this process was started with, or SettingsError with every fault.

    Read once, by gunicorn's master: a worker that is started later, after a fault perhaps, finds
    in its memory what the others have, whatever `.env` says by then.
    """
    return load_settings(environment())


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
