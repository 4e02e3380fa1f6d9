"""Sync tokens: how far a client is with the changes of its user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from todo_api.resources.cursors import decode, encode
from todo_api.resources.types import MICROSECONDS, microseconds
from todo_api.web.problems import invalid

if TYPE_CHECKING:
    from todo_api.resources.changes import Changes

REVISION = re.compile("[0-9]{1,18}")
REVISIONS = range(10**18)


@dataclass(frozen=True)
class SyncToken:
    """How far a client is with the changes of its user.

    The client has all changes up to `revision`; the last of them was made at `moment`, in
    microseconds since 1970. In a full sync, `start` is the owner's revision when it began, and
    `is_broken` tells that something has happened since that its later pages will not show.
    """

    revision: int
    moment: int | None = None
    full: bool = False
    start: int | None = None
    is_broken: bool = False

    @property
    def deletions_after(self) -> int | None:
        """The revision after which deletions are sent; None for the owner's latest."""
        return self.start if self.full else 0

    def has_diverged(self, page: Changes) -> bool:
        """Return whether the client's copy is not what the server had at that revision.

        The token is above the owner's revision, or changes before it are younger than it says: the
        server was restored from a backup. Or a deletion that the client has not seen was purged.
        """
        known = self.start if self.full else self.revision
        return (
            self.is_broken
            or self.revision > page.revision
            or (known is not None and known < page.purged_revision)
            or (
                self.moment is not None
                and page.before is not None
                and microseconds(page.before) > self.moment
            )
        )

    def needs_full_sync(self, page: Changes) -> bool:
        """Return whether only a new full sync can help; one that has begun is always finished."""
        return not self.full and self.has_diverged(page)

    def after(self, page: Changes) -> SyncToken:
        """Return the token for the end of this page."""
        last: datetime | None
        if page.more:
            revision, last = page.changes[-1].revision, page.changes[-1].moment
        else:
            revision, last = page.revision, page.latest
        begun = self.start if self.start is not None else page.revision
        return SyncToken(
            revision,
            microseconds(last) if last else None,
            full=self.full and page.more,
            start=begun if self.full and page.more else None,
            is_broken=self.full and self.revision > 0 and self.has_diverged(page),
        )

    def text(self) -> str:
        """Return the token as clients get it."""
        return encode([self.revision, self.moment, self.full, self.start, self.is_broken])


def read_sync_token(text: str) -> SyncToken:
    """Return the token of a revision or of a page's `next`; 422 for anything else."""
    if REVISION.fullmatch(text):
        return SyncToken(int(text), full=int(text) == 0)
    try:
        revision, moment_, full, start, is_broken = decode(text)
        # Within a full sync there is a start, and without one there is none.
        if checked_boolean(full) == (start is not None):
            return SyncToken(
                checked_integer(revision, REVISIONS),
                None if moment_ is None else checked_integer(moment_, MICROSECONDS),
                full,
                None if start is None else checked_integer(start, REVISIONS),
                checked_boolean(is_broken),
            )
    except ValueError:
        pass
    detail = "Must be 0, a revision, or next of a page of changes."
    raise invalid([{"parameter": "since", "detail": detail}])


def checked_integer(value: Any, allowed: range) -> int:
    """Return the value if it is one of these integers. Raises ValueError."""
    # Not isinstance, by which True is an integer.
    if type(value) is not int or value not in allowed:
        raise ValueError(value)
    return value


def checked_boolean(value: Any) -> bool:
    """Return the value if it is a boolean. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004  as for every value that is not ours
    return value
