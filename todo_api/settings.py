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

# An origin as browsers send it: in lower case, without path and user, and without a default port.
ORIGIN = re.compile(r"(?!https://.*:443$|http://.*:80$)https?://[a-z0-9.\-_\[\]:]+")

# The characters that delimit the parts of a URL (RFC 3986, section 2.2), except the colon, which
# every URL parser accepts in a password.
UNESCAPED_DELIMITERS = re.compile(r"[/?#\[\]@]")
PORTS = range(1, 65536)
PERCENT_ENCODE = "Percent-encode special characters in the password: %40 for @, %2F for /"

# Takes the text of a variable and returns the setting's value. Raises ValidationError.
Parser = Callable[[str], Any]

SettingsType = TypeVar("SettingsType", bound="DatabaseSettings")


class SettingsError(Exception):
    """The settings are invalid. The message lists all faults."""


def check_postgresql_url(value: str) -> None:
    """Raise ValidationError for a URL that libpq would misread.

    libpq ends the password at an unescaped `@`: it would use the rest of the password as the host
    name, and repeat it in errors and in the log. At an unescaped `/`, it would use a part of the
    password as the port or the name of the database.
    """
    # No message repeats any part of the value, because the value may contain a password.
    if re.match(r"postgres(ql)?\+[^:/]*://", value):
        raise ValidationError("Drop the + and the driver's name after it: postgresql://.")
    scheme = re.match(r"postgres(ql)?://", value)
    if not scheme:
        raise ValidationError("Must be a postgresql:// URL.")
    userinfo, at, rest = value[scheme.end() :].partition("@")
    if at and (UNESCAPED_DELIMITERS.search(userinfo) or "@" in rest):
        raise ValidationError(f"{PERCENT_ENCODE}.")
    try:
        parameters = conninfo_to_dict(value)
    except (ProgrammingError, UnicodeError):
        raise ValidationError(f"Must be a URL that libpq can read. {PERCENT_ENCODE}.") from None
    # A port for each host; an empty port means the default.
    ports = filter(None, str(parameters.get("port", "")).split(","))
    if not all(re.fullmatch("[0-9]{1,5}", port) and int(port) in PORTS for port in ports):
        raise ValidationError(f"The port must be a number from 1 to 65535. {PERCENT_ENCODE}.")


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
        raise ValidationError(
            "Must be an https:// URL, or an http:// URL of this machine (localhost)."
        )
    if "@" in parts.netloc:
        raise ValidationError(
            "Must not contain a user or password: the server logs the URL and does not send them."
        )


def parse_origins(value: str) -> tuple[str, ...]:
    """Return the origins in a comma-separated list. Raises ValidationError."""
    origins = tuple(origin.strip() for origin in value.split(","))
    if not all(ORIGIN.fullmatch(origin) for origin in origins):
        raise ValidationError("Each part must be an origin without a path: https://app.example.")
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

    `doc` is Markdown, for the table in README.md. `check` raises ValidationError for a bad value.
    `words` are the allowed values, in lower case; the variable may also have capital letters.
    `parse` converts the variable's text. If the variable is not set, the setting gets the value of
    the setting `default_from`.
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
    """The settings of migrations and of `make purge`, which removes old deleted rows.

    The value of a setting comes from the environment variable of the same name in capitals. To add
    a setting, declare it here or in Settings, and document it in README.md and .env.example.
    """

    database_url: str = field(
        metadata=describe(
            "the `postgresql://` URL of the database. PostgreSQL 15 or later is required. If this"
            " setting is missing, `make run` starts a database. Percent-encode special characters"
            " in the password: `%40` for `@`, `%2F` for `/`",
            check=check_postgresql_url,
        )
    )
    migration_database_url: str = field(
        metadata=describe(
            "the URL for migrations. If `DATABASE_URL` is the URL of a pooler, set this to a URL"
            " without the pooler",
            check=check_postgresql_url,
            default_from="database_url",
        )
    )
    log_level: str = field(
        default="info",
        metadata=describe(
            "the lowest level of messages that are logged: `debug`, `info`, `warning` or `error`",
            words=("debug", "info", "warning", "error"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Settings(DatabaseSettings):
    """The settings of the server."""

    database_prepare: bool = field(
        default=True,
        metadata=describe("use prepared statements. Set `false` for PgBouncer before version 1.22"),
    )
    auth_mode: str = field(
        default="jwt",
        metadata=describe(
            "`jwt` requires a token. `none` checks no token and trusts the user id in the path, so"
            " use it only behind a gateway that checks the user",
            words=("jwt", "none"),
        ),
    )
    jwt_jwks_url: str | None = field(
        default=None,
        metadata=describe(
            "the URL of an issuer's key set (EdDSA, ES256, RS256 and similar)", check=check_jwks_url
        ),
    )
    jwt_public_key: str | None = field(
        default=None,
        metadata=describe(
            "one public key, instead of a key set: a PEM, a JWK, or the path of a file that"
            " contains one of these"
        ),
    )
    jwt_secret: str | None = field(
        default=None,
        metadata=describe("a shared secret of at least 32 bytes (HS256), instead of a key set"),
    )
    jwt_issuer: str | None = field(
        default=None,
        metadata=describe(
            "the value that the claim `iss` of a token must have; required with `JWT_JWKS_URL`"
        ),
    )
    jwt_audience: str | None = field(
        default=None,
        metadata=describe(
            "the value that the claim `aud` of a token must have or contain; required with"
            " `JWT_JWKS_URL`"
        ),
    )
    jwt_user_claim: str = field(
        default="sub",
        metadata=describe("the claim that identifies the user. Its value is called the subject"),
    )
    jwt_user_ids: str = field(
        default="subject",
        metadata=describe(
            "how the server makes the user's id from the subject. `subject`: a subject that is a"
            " UUID is used as the id; for any other subject, the id is a UUIDv5 of issuer and"
            " subject. `derived`: for every subject, the id is a UUIDv5 of issuer and subject",
            words=("subject", "derived"),
        ),
    )
    require_if_match: bool = field(
        default=False, metadata=describe("refuse a change without `If-Match`, with status 428")
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=describe(
            "the origins of the web pages that may call the API from a browser (CORS), separated by"
            " commas",
            parse=parse_origins,
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
        default=2, metadata=describe("the number of worker processes", check=validate.Range(1, 256))
    )
    web_threads: int = field(
        default=4,
        metadata=describe(
            "the number of threads in each worker. A worker opens up to `WEB_THREADS` - 1 database"
            " connections (at least 1), so that one thread is free for `/livez`. With a single"
            " thread, `/livez` waits until earlier requests have finished",
            check=validate.Range(1, 64),
        ),
    )
    request_timeout: float = field(
        default=5,
        metadata=describe(
            "the maximum duration of a request in seconds, including the wait for the database and"
            " a retry",
            check=validate.Range(0.1, 60),
        ),
    )
    max_tasks: int = field(
        default=10_000,
        metadata=describe(
            "the maximum number of tasks of a user; with those in the trash, twice as many",
            check=validate.Range(1, 10_000_000),
        ),
    )
    max_bytes: int = field(
        default=256 * 1024 * 1024,
        metadata=describe(
            "the maximum size of all tasks and lists of a user as JSON, in bytes, with the trash",
            check=validate.Range(1, 2**50),
        ),
    )
    metrics: bool = field(
        default=False,
        metadata=describe("serve [`/metrics`](docs/metrics.md) for Prometheus, without a token"),
    )


class DatabaseRules(Schema):
    class Meta:
        unknown = EXCLUDE


class ServerRules(DatabaseRules):
    """The rules on several settings together. They read the variables before any conversion."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_one_key_source(self, _: Any, variables: Mapping[str, str], **__: Any) -> None:
        if variables.get("AUTH_MODE", "jwt").lower() != "jwt":
            return
        sources = [name for name in KEY_SOURCES if name in variables]
        if len(sources) != 1:
            fault = (
                f"Set only one of {' and '.join(sources)}."
                if sources
                else f"Set one of {', '.join(KEY_SOURCES)} to verify tokens, or AUTH_MODE=none."
            )
            raise ValidationError(fault, "AUTH_MODE")

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def require_issuer_of_key_set(self, _: Any, variables: Mapping[str, str], **__: Any) -> None:
        # Many services share an issuer's keys: without JWT_ISSUER and JWT_AUDIENCE, tokens for
        # other services would be accepted.
        if variables.get("AUTH_MODE", "jwt").lower() == "jwt" and "JWT_JWKS_URL" in variables:
            missing = {
                name: ["Must be set with JWT_JWKS_URL."]
                for name in ("JWT_ISSUER", "JWT_AUDIENCE")
                if name not in variables
            }
            if missing:
                raise ValidationError(missing)


def read_environment() -> dict[str, str]:
    """Return the variables of the process, and those of `.env` that the process does not set."""
    values = dotenv_values(Path(".env"))
    return {name: value for name, value in values.items() if value is not None} | os.environ


def load_database_settings(environ: Mapping[str, str]) -> DatabaseSettings:
    """Return the settings of migrations and `make purge`. Raises SettingsError with every fault."""
    return load(DatabaseSettings, DatabaseRules, environ, {})


def load_server_settings(
    environ: Mapping[str, str], *, parse_public_key: Parser, parse_secret: Parser
) -> Settings:
    """Return the settings of the server. Raises SettingsError with every fault.

    startup.py passes the parsers of keys, because this module may not import auth/keys.py.
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
    declarations = fields(settings)
    schema = rules.from_dict(
        {
            each.name.upper(): schema_field(each, types[each.name], parsers.get(each.name))
            for each in declarations
        }
    )
    # An empty variable counts as not set: `NAME=` is usual in .env and compose files.
    variables = {name: value for name, value in environ.items() if value}
    try:
        loaded = schema().load(variables)
    except ValidationError as error:
        faults = (
            f"  {name}: {' '.join(messages)}" for name, messages in error.messages_dict.items()
        )
        raise SettingsError("\n".join(["These settings are invalid:", *faults])) from None
    values = {name.lower(): value for name, value in loaded.items()}
    for each in declarations:
        if each.metadata["default_from"]:
            values.setdefault(each.name, values[each.metadata["default_from"]])
    return settings(**values)


def schema_field(
    declaration: Field[Any], hint: Any, parser: Parser | None
) -> schema_fields.Field[Any]:
    """Return the marshmallow field of a setting. Its default is in the dataclass."""
    # For `str | None` and `tuple[str, ...]`, the variable is parsed as the first type argument.
    kind = (get_args(hint) or (hint,))[0]
    ignores_case = kind is bool or bool(declaration.metadata["words"])
    return Schema.TYPE_MAPPING[kind](
        required=declaration.default is MISSING and declaration.metadata["default_from"] is None,
        error_messages={"required": "Must be set."},
        pre_load=str.lower if ignores_case else None,
        validate=declaration.metadata["check"],
        post_load=parser or declaration.metadata["parse"],
    )
