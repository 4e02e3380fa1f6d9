"""Cursors: where a page of a list ended, in a text that means something to this server only."""

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
    """Return 16 hexadecimal digits that are the same for the same query only."""
    canonical = orjson.dumps(
        query, default=bytes.hex, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
    )
    return sha256(canonical).hexdigest()[:16]


def encode(fields: list[Any]) -> str:
    """Return the JSON values as URL-safe text."""
    return urlsafe_b64encode(orjson.dumps(fields)).decode().rstrip("=")


def decode(text: str) -> list[Any]:
    """Return what `encode` was given. Raises ValueError for a text that it has not made.

    A client can make such a text, too: the values may be of any type.
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
    """Return the position that `write_cursor` wrote; 422 if it was for another query.

    `to_parameter` is that of the query's SortKey.
    """
    if text is None:
        return None
    try:
        value, item_id, of_query = decode(text)
        to_parameter(value)
        position = Position(value, checked_id(item_id))
    except (ValueError, TypeError):
        of_query = None
    if of_query != query:
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position


def checked_id(value: Any) -> UUID:
    """Return the UUID of its canonical text. Raises ValueError."""
    if not isinstance(value, str) or str(item_id := UUID(value)) != value:
        raise ValueError(value)
    return item_id
