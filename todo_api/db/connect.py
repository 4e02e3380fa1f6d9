"""Connect for a command, such as migrations, and report in one sentence if that fails."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo


class UnreachableError(Exception):
    """The database cannot be connected to; the message names host and port, and no password."""


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """Return a connection without prepared statements, which a pooler may not support.

    Raises UnreachableError.
    """
    try:
        return psycopg.connect(url, prepare_threshold=None, **options)
    except psycopg.OperationalError as error:
        # Without its cause, whose traceback is of no use to who reads the message.
        raise UnreachableError(
            f"Cannot connect to the database {address_of(url)}: {reason_of(error)}."
        ) from None


def address_of(url: str) -> str:
    """Return where libpq connects to: what the URL leaves out is libpq's default."""
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in Conninfo.get_defaults()
        if option.val
    }
    parameters = defaults | conninfo_to_dict(url)
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    return f"at {host}, port {parameters['port']}"


def reason_of(error: psycopg.OperationalError) -> str:
    """Return the reason of the last attempt, without libpq's hints and what it says of the host."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    reason = lines[-1].rpartition(" failed: ")[2] if lines else type(error).__name__
    return reason.removeprefix("FATAL:").strip().rstrip(".")
