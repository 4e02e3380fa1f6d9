"""Connect to the database in commands and migrations, with a failure in one sentence."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

# Seconds for each address of the host, unless the URL or PGCONNECT_TIMEOUT sets a timeout.
# psycopg's default is 130.
CONNECT_TIMEOUT = 10


class UnreachableError(Exception):
    """Connecting to the database failed. The message has the host and port, but no password."""


def connect(
    url: str, *, timeout: int = CONNECT_TIMEOUT, autocommit: bool = False
) -> psycopg.Connection[Any]:
    """Return a connection without prepared statements, which a pooler may not support.

    Raises UnreachableError.
    """
    parameters = read_parameters(url)
    try:
        return psycopg.connect(
            url,
            prepare_threshold=None,
            autocommit=autocommit,
            connect_timeout=parameters.get("connect_timeout", timeout),
        )
    except psycopg.OperationalError as error:
        host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
        raise UnreachableError(
            f"Cannot connect to the database at {host}, port {parameters['port']}:"
            f" {read_reason(error)}."
        ) from None


def read_parameters(url: str) -> dict[str, Any]:
    """Return the parameters of the URL, completed from PG* variables and libpq's defaults."""
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in Conninfo.get_defaults()
        if option.val
    }
    return defaults | conninfo_to_dict(url)


def read_reason(error: psycopg.OperationalError) -> str:
    """Return the reason why the last attempt failed, without libpq's hints and the host."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    reason = lines[-1].rpartition(" failed: ")[2] if lines else type(error).__name__
    return reason.removeprefix("FATAL:").strip().rstrip(".")
