"""Where a client is, in texts that mean something to this server only."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from todo_api.errors import invalid
from todo_api.statements.pages import Position

if TYPE_CHECKING:
    from todo_api.statements.pages import Changes

REVISION = re.compile("[0-9]{1,18}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def digest(*query: Any) -> str:
    """The same for the same query, and for no other one."""
    canonical = orjson.dumps(
        query, default=bytes.hex, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
    )
    return sha256(canonical).hexdigest()[:16]


def encode(fields: list[Any]) -> str:
    return urlsafe_b64encode(orjson.dumps(fields)).decode().rstrip("=")


def decode(text: str) -> list[Any]:
    """What `encode` was given. Raises ValueError for a text that it has not made."""
    fields = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(fields, list) or encode(fields) != text:
        raise ValueError(text)
    return fields


def cursor(end: Position, query: str) -> str:
    """The name of where a page of this query ended."""
    value = microseconds(end.value) if isinstance(end.value, datetime) else end.value
    return encode([value, str(end.id), query])


def read_cursor(text: str | None, query: str, sort: str) -> Position | None:
    """The position that `cursor` named; 422 if it is not one of this query."""
    if text is None:
        return None
    try:
        value, task_id, of_query = decode(text)
        value = checked_title(value) if sort.endswith("title") else moment(value)
        position = Position(value, UUID(task_id))
    except (ValueError, TypeError, AttributeError, OverflowError):
        of_query = None
    if of_query != query:
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position


def checked_title(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError(value)
    return value


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment(value: Any) -> datetime:
    if not isinstance(value, int):
        raise TypeError(value)
    return EPOCH + timedelta(microseconds=value)


@dataclass(frozen=True)
class Since:
    """How far a client is with the changes of its user.

    It has all up to `revision`, of which the last was made at `moment`, in microseconds. In a full
    sync, `start` is the owner's revision when that began; it is `broken` if something has happened
    meanwhile that its later pages do not tell.
    """

    revision: int
    moment: int | None = None
    full: bool = False
    start: int | None = None
    broken: bool = False

    @property
    def deletions_after(self) -> int | None:
        """The revision from which on the client is told of deletions; None for the latest."""
        return self.start if self.full else 0

    def parted(self, page: Changes) -> bool:
        """Whether what the client has is not what the server had at that revision.

        It is above what there is, or what comes before it is younger: the server was restored from
        a backup. Or a deletion of which it has not been told was purged.
        """
        known = self.start if self.full else self.revision
        return (
            self.broken
            or self.revision > page.revision
            or (known is not None and known < page.purged_revision)
            or (
                self.moment is not None
                and page.before is not None
                and microseconds(page.before) > self.moment
            )
        )

    def lost(self, page: Changes) -> bool:
        """Whether only a full sync can help. One that has begun is always brought to its end."""
        return not self.full and self.parted(page)

    def after(self, page: Changes) -> Since:
        """How far the client is with this page."""
        last: datetime | None
        if page.more:
            revision, last = page.changes[-1].revision, page.changes[-1].moment
        else:
            revision, last = page.revision, page.latest
        begun = self.start if self.start is not None else page.revision
        return Since(
            revision,
            microseconds(last) if last else None,
            full=self.full and page.more,
            start=begun if self.full and page.more else None,
            broken=self.full and self.revision > 0 and self.parted(page),
        )

    def text(self) -> str:
        return encode([self.revision, self.moment, self.full, self.start, self.broken])


def read_since(text: str) -> Since:
    """How far the client is: a revision, or what a page gave as `next`; 422 for anything else."""
    if REVISION.fullmatch(text):
        return Since(int(text), full=int(text) == 0)
    try:
        revision, moment_, full, start, broken = decode(text)
        if REVISION.fullmatch(str(revision)) and REVISION.fullmatch(str(start or 0)):
            return Since(revision, moment_ and int(moment_), bool(full), start, bool(broken))
    except (ValueError, TypeError):
        pass
    detail = "Must be 0, a revision, or next of a page of changes."
    raise invalid([{"parameter": "since", "detail": detail}])
