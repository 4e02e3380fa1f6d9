"""Cursors: the end of a page, as text that only this server interprets."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from todo_api.resources.calendar_types import UNIX_EPOCH, microseconds
from todo_api.resources.pages import Position
from todo_api.resources.time_zones import Day, zone_names
from todo_api.web.problems import invalid

if TYPE_CHECKING:
    from collections.abc import Callable


def digest(*query: Any) -> str:
    """Return 16 hexadecimal digits that differ for different queries."""
    canonical = orjson.dumps(
        query, default=bytes.hex, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
    )
    return sha256(canonical).hexdigest()[:16]


def encode(fields: list[Any]) -> str:
    """Return the JSON values as URL-safe text."""
    return urlsafe_b64encode(orjson.dumps(fields)).decode().rstrip("=")


def decode(text: str) -> list[Any]:
    """Return the values for which `encode` returns this text, otherwise raise ValueError.

    The text may come from a client, so the values may be of any type.
    """
    fields = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    try:
        canonical_text = encode(fields)
    except TypeError as error:  # nested too deeply to be encoded
        raise ValueError(text) from error
    if not isinstance(fields, list) or canonical_text != text:
        raise ValueError(text)
    return fields


def write_cursor(end: Position, query: str) -> str:
    """Return the cursor for the end of a page of the query with this digest."""
    day = [end.day.time_zone, microseconds(end.day.now)] if end.day else []
    return encode([end.value, str(end.id), query, *day])


def read_cursor(
    text: str | None, query: str, to_parameter: Callable[[Any], Any], *, has_day: bool = False
) -> Position | None:
    """Return the position in the cursor. Raises a 422 if the cursor is for another query.

    `to_parameter` is the method of the query's SortKey. The cursors of queries that depend on the
    day, and only these, have a day.
    """
    if text is None:
        return None
    position: Position | None
    try:
        value, item_id, cursor_query, *day = decode(text)
        to_parameter(value)
        position = Position(value, parse_id(item_id), parse_day(*day) if day else None)
    except (ValueError, TypeError):
        position = cursor_query = None
    if position is None or cursor_query != query or bool(position.day) != has_day:
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position


def parse_id(value: Any) -> UUID:
    """Return the UUID. Raises ValueError unless the value is its canonical text."""
    if not isinstance(value, str) or str(item_id := UUID(value)) != value:
        raise ValueError(value)
    return item_id


def parse_day(time_zone: Any, now: Any) -> Day:
    """Return the day of a moment in microseconds since 1970. Raises ValueError or TypeError."""
    if not isinstance(time_zone, str) or time_zone not in zone_names():
        raise ValueError(time_zone)
    # A date one day later or earlier must exist, whatever the time zone is.
    if type(now) is not int or not 0 <= now < 2**53:
        raise ValueError(now)
    return Day(UNIX_EPOCH + timedelta(microseconds=now), time_zone)
