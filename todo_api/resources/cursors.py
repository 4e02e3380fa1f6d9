"""Cursors: the end of a page of a list, as text that only this server interprets."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from todo_api.resources.pages import Position
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
        made = encode(fields)
    except TypeError as error:  # nested too deeply to be encoded
        raise ValueError(text) from error
    if not isinstance(fields, list) or made != text:
        raise ValueError(text)
    return fields


def write_cursor(end: Position, query: str) -> str:
    """Return the cursor for the end of a page of the query with this digest."""
    return encode([end.value, str(end.id), query])


def read_cursor(
    text: str | None, query: str, to_parameter: Callable[[Any], Any]
) -> Position | None:
    """Return the position in the cursor. Raises a 422 if the cursor is for another query.

    `to_parameter` is the method of the query's SortKey.
    """
    if text is None:
        return None
    try:
        value, item_id, cursor_query = decode(text)
        to_parameter(value)
        position = Position(value, checked_id(item_id))
    except (ValueError, TypeError):
        cursor_query = None
    if cursor_query != query:
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position


def checked_id(value: Any) -> UUID:
    """Return the UUID. Raises ValueError unless the value is its canonical text."""
    if not isinstance(value, str) or str(item_id := UUID(value)) != value:
        raise ValueError(value)
    return item_id
