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
REVISIONS = range(10**18)
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
    """Return what `encode` was given. Raises ValueError for a text that it has not made.

    A client can make such a text, too: the members may be of any type.
    """
    fields = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    try:
        made = encode(fields)
    except TypeError as error:  # nested too deeply to be encoded
        raise ValueError(text) from error
    if not isinstance(fields, list) or made != text:
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
        position = Position(value, checked_id(task_id))
    except ValueError:
        of_query = None
    if of_query != query:
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position


def checked_title(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError(value)
    return value


def checked_id(value: Any) -> UUID:
    if not isinstance(value, str) or str(task_id := UUID(value)) != value:
        raise ValueError(value)
    return task_id


def checked_integer(value: Any, allowed: range) -> int:
    # Not isinstance, by which True is an integer.
    if type(value) is not int or value not in allowed:
        raise ValueError(value)
    return value


def checked_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004  as for every value that is not ours
    return value


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly."""
    return (moment - EPOCH) // timedelta(microseconds=1)


MOMENTS = range(
    microseconds(datetime.min.replace(tzinfo=UTC)),
    microseconds(datetime.max.replace(tzinfo=UTC)) + 1,
)


def moment(value: Any) -> datetime:
    return EPOCH + timedelta(microseconds=checked_integer(value, MOMENTS))


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
        # Within a full sync there is a start, and without one there is none.
        if checked_boolean(full) == (start is not None):
            return Since(
                checked_integer(revision, REVISIONS),
                None if moment_ is None else checked_integer(moment_, MOMENTS),
                full,
                None if start is None else checked_integer(start, REVISIONS),
                checked_boolean(broken),
            )
    except ValueError:
        pass
    detail = "Must be 0, a revision, or next of a page of changes."
    raise invalid([{"parameter": "since", "detail": detail}])
