"""Settings from the environment: each one's name, type, default and description, declared once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

from dotenv import dotenv_values
from marshmallow import EXCLUDE, Schema, ValidationError, validate, validates_schema
from marshmallow import fields as schema_fields
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

LOOPBACK = ("127.0.0.1", "::1", "localhost")

KEY_SOURCES = ("JWT_JWKS_URL", "JWT_PUBLIC_KEY", "JWT_SECRET")

# In the form that browsers send: lower case, no path, no user, and no port that is the default.
ORIGIN = re.compile(r"(?!https://.*:443$|http://.*:80$)https?://[a-z0-9.\-_\[\]:]+")

# The characters that delimit the parts of a URL (RFC 3986, section 2.2), except the colon, which
# every URL parser accepts in a password.
MISREAD = re.compile(r"[/?#\[\]@]")
PORTS = range(1, 65536)
PERCENT_ENCODE = "Percent-encode special characters in the password: %40 for @, %2F for /"

# Takes the text of a variable and returns the setting's value. Raises ValidationError.
Parser = Callable[[str], Any]

SettingsType = TypeVar("SettingsType", bound="DatabaseSettings")


class SettingsError(Exception):
    """The settings are invalid; the message names every fault."""


def check_postgresql_url(value: str) -> None:
    """Raise ValidationError unless libpq reads the `postgresql://` URL as it is meant.

    libpq ends the password at the first `@` and takes the rest of it for the host's name, which
    its errors and the log then repeat; with a `/` before it, for the port or the database's name.
    """
    # No message repeats the value, or a part of it: it may hold a password.
    if re.match(r"postgres(ql)?\+[^:/]*://", value):
        raise ValidationError("Drop the + and the driver's name after it: postgresql://.")
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
    # One port for each host; an empty one means the default.
    ports = filter(None, str(parameters.get("port", "")).split(","))
    if not all(re.fullmatch("[0-9]{1,5}", port) and int(port) in PORTS for port in ports):
        raise ValidationError(f"A port is a number from 1 to 65535. {PERCENT_ENCODE}.")


def check_jwks_url(value: str) -> None:
    """Raise ValidationError unless the value is an https:// URL, or an http:// URL of loopback."""
    try:
        parts = urlsplit(value)
        is_local = parts.scheme == "http" and parts.hostname in LOOPBACK
        is_valid = (
            not re.search(r"\s", value)
            and parts.hostname
            and (parts.scheme == "https" or is_local)
            and parts.port != 0
        )
    except ValueError:  # an invalid port or address
        is_valid = False
    if not is_valid:
        raise ValidationError("Must be an https:// URL; http:// is for loopback only.")
    if "@" in parts.netloc:
        raise ValidationError("Must not hold a password: it would be logged, and is not sent.")


def parse_origins(value: str) -> tuple[str, ...]:
    """Return the origins of a comma-separated list. Raises ValidationError."""
    origins = tuple(origin.strip() for origin in value.split(","))
    if not all(ORIGIN.fullmatch(origin) for origin in origins):
        raise ValidationError("Each must be an origin: https://app.example, without a path.")
    return origins


def describe(
    doc: str,
    *,
    check: Callable[[Any], Any] | None = None,
    words: tuple[str, ...] = (),
    parse: Parser | None = None,
    default_from: str | None = None,
) -> dict[str, Any]:
    """Return the metadata of a setting's dataclass field.

    `doc` is Markdown, for the table in README.md. `check` raises ValidationError for a bad value;
    `words` has the allowed values, in lower case, which are accepted in any case. `parse` converts
    the variable's text, and `default_from` names the setting whose value is taken if this one is
    not set.
    """
    if words:
        check = validate.OneOf(words)
    return {
        "doc": doc,
        "check": check,
        "words": words,
        "parse": parse,
        "default_from": default_from,
    }


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """The settings of migrations and of the purge.

    A setting is read from the variable of the same name in capitals. To add one, declare it here or
    in Settings, and document it in README.md and .env.example.
    """

    database_url: str = field(
        metadata=describe(
            "any PostgreSQL from 15 on, as a `postgresql://` URL; `make run` starts a database"
            " without it. Special characters in the password are percent-encoded: `%40` for `@`,"
            " `%2F` for `/`",
            check=check_postgresql_url,
        )
    )
    migration_database_url: str = field(
        metadata=describe(
            "where migrations connect: a direct URL, if the other one is a pooler's",
            check=check_postgresql_url,
            default_from="database_url",
        )
    )
    log_level: str = field(
        default="info",
        metadata=describe(
            "`debug`, `info`, `warning` or `error`",
            words=("debug", "info", "warning", "error"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Settings(DatabaseSettings):
    """The settings of the server."""

    database_prepare: bool = field(
        default=True, metadata=describe("prepared statements; `false` behind PgBouncer before 1.22")
    )
    auth_mode: str = field(
        default="jwt",
        metadata=describe(
            "`none` trusts the path: for a network or a gateway that has verified the caller",
            words=("jwt", "none"),
        ),
    )
    jwt_jwks_url: str | None = field(
        default=None,
        metadata=describe(
            "an issuer's key set (EdDSA, ES256, RS256 and their like)", check=check_jwks_url
        ),
    )
    jwt_public_key: str | None = field(
        default=None,
        metadata=describe("one public key instead: a PEM or JWK, or the path of a file"),
    )
    jwt_secret: str | None = field(
        default=None, metadata=describe("a shared secret instead, of 32 bytes at least (HS256)")
    )
    jwt_issuer: str | None = field(
        default=None,
        metadata=describe("the `iss` that tokens must have; required with `JWT_JWKS_URL`"),
    )
    jwt_audience: str | None = field(
        default=None,
        metadata=describe("the `aud` that tokens must have; required with `JWT_JWKS_URL`"),
    )
    jwt_user_claim: str = field(default="sub", metadata=describe("the claim that names the user"))
    jwt_user_ids: str = field(
        default="subject",
        metadata=describe(
            "`subject`: a subject that is a UUID is the user's id, and the id of any other is a"
            " UUIDv5 of issuer and subject; `derived`: the id of every subject is that UUIDv5",
            words=("subject", "derived"),
        ),
    )
    require_if_match: bool = field(
        default=False, metadata=describe("refuse a change without `If-Match` (428)")
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=describe(
            "the origins whose pages may call, with commas between", parse=parse_origins
        ),
    )
    host: str = field(
        default="127.0.0.1", metadata=describe("the address on which gunicorn listens")
    )
    port: int = field(
        default=8000,
        metadata=describe(
            "the port on which gunicorn listens", check=validate.Range(PORTS[0], PORTS[-1])
        ),
    )
    web_concurrency: int = field(
        default=2, metadata=describe("worker processes", check=validate.Range(1, 256))
    )
    web_threads: int = field(
        default=4,
        metadata=describe(
            "threads in each worker; a worker has one connection to the database fewer than"
            " threads, so that one thread is free to answer `/livez`; with a single thread,"
            " `/livez` waits for the requests before it",
            check=validate.Range(1, 64),
        ),
    )
    request_timeout: float = field(
        default=5,
        metadata=describe(
            "seconds that a request may take, waiting for the database and repeating included",
            check=validate.Range(0.1, 60),
        ),
    )
    metrics: bool = field(
        default=False,
        metadata=describe(
            "serve [`/metrics`](docs/metrics.md) for Prometheus, to all clients that can connect"
        ),
    )


class DatabaseRules(Schema):
    class Meta:
        unknown = EXCLUDE


class ServerRules(DatabaseRules):
    """The rules that concern several settings. They look at the variables, not at valid values."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_one_key_source(self, _: Any, given: Mapping[str, str], **__: Any) -> None:
        if given.get("AUTH_MODE", "jwt").lower() != "jwt":
            return
        sources = [name for name in KEY_SOURCES if name in given]
        if len(sources) != 1:
            fault = (
                f"Only one of these: {' and '.join(sources)}."
                if sources
                else f"Needs one of {', '.join(KEY_SOURCES)} to verify tokens with."
            )
            raise ValidationError(fault, "AUTH_MODE")

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_issuer_of_key_set(self, _: Any, given: Mapping[str, str], **__: Any) -> None:
        # Many services share an issuer's keys: without these, tokens for others would be accepted.
        if given.get("AUTH_MODE", "jwt").lower() == "jwt" and "JWT_JWKS_URL" in given:
            missing = {
                name: ["Must be set with JWT_JWKS_URL."]
                for name in ("JWT_ISSUER", "JWT_AUDIENCE")
                if name not in given
            }
            if missing:
                raise ValidationError(missing)


def read_environment() -> dict[str, str]:
    """Return the variables of `.env` in the working directory, and the process's, which win."""
    values = dotenv_values(Path(".env"))
    return {name: value for name, value in values.items() if value is not None} | os.environ


def load_database_settings(environ: Mapping[str, str]) -> DatabaseSettings:
    """Return the settings of migrations and of the purge. Raises SettingsError with every fault."""
    return load(DatabaseSettings, DatabaseRules, environ, {})


def load_server_settings(
    environ: Mapping[str, str], *, parse_public_key: Parser, parse_secret: Parser
) -> Settings:
    """Return the settings of the server. Raises SettingsError with every fault.

    The parsers of keys are arguments because this module knows no formats of keys; startup.py has
    them.
    """
    parsers = {"jwt_public_key": parse_public_key, "jwt_secret": parse_secret}
    return load(Settings, ServerRules, environ, parsers)


def load(
    settings: type[SettingsType],
    rules: type[Schema],
    environ: Mapping[str, str],
    parsers: Mapping[str, Parser],
) -> SettingsType:
    """Return the settings of this class. Raises SettingsError with every fault."""
    types = get_type_hints(settings)
    declared = fields(settings)
    schema = rules.from_dict(
        {
            each.name.upper(): schema_field(each, types[each.name], parsers.get(each.name))
            for each in declared
        }
    )
    # An empty variable counts as not set: `NAME=` means that in a .env file and a compose file.
    given = {name: value for name, value in environ.items() if value}
    try:
        loaded = schema().load(given)
    except ValidationError as error:
        faults = (
            f"  {name}: {' '.join(messages)}" for name, messages in error.messages_dict.items()
        )
        raise SettingsError("\n".join(["The settings are not right:", *faults])) from None
    values = {name.lower(): value for name, value in loaded.items()}
    for each in declared:
        if each.metadata["default_from"]:
            values.setdefault(each.name, values[each.metadata["default_from"]])
    return settings(**values)


def schema_field(
    declared: Field[Any], hint: Any, parser: Parser | None
) -> schema_fields.Field[Any]:
    """Return the marshmallow field of a setting: missing values stay missing, for the dataclass."""
    # Of `str | None` and `tuple[str, ...]`, the first argument is the type of the text.
    kind = (get_args(hint) or (hint,))[0]
    is_word = kind is bool or bool(declared.metadata["words"])
    return Schema.TYPE_MAPPING[kind](
        required=declared.default is MISSING and declared.metadata["default_from"] is None,
        pre_load=str.lower if is_word else None,
        validate=declared.metadata["check"],
        post_load=parser or declared.metadata["parse"],
    )
