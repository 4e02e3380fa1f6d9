"""Sync tokens: which of its user's changes a client has."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from todo_api.web.fields import REVISION, USER_ID
from todo_api.web.problems import invalid

if TYPE_CHECKING:
    from todo_api.resources.changes import Changes

# The user's id, the epoch, the revision, the id and the revision of the start, as bytes. The first
# byte is the version of this format.
FORMAT = struct.Struct(">B16s16sq16sq")
VERSION = 1
FIRST_ID, LAST_ID = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True)
class SyncToken:
    """Which of its user's changes a client has.

    The client has all changes up to `(revision, id)`, in this order; after a last page, that is the
    owner's revision and the highest id. `started` is the owner's revision when the full sync began,
    `epoch` that of the database. Both are None before the first page.
    """

    epoch: UUID | None = None
    revision: int = 0
    id: UUID = FIRST_ID
    started: int | None = None

    def needs_full_sync(self, page: Changes) -> bool:
        """Return whether the client's copy cannot be brought up to date.

        Either the database was restored from a backup, or a deletion was purged that neither the
        pages up to now nor the start of the full sync have taken into account.
        """
        if self.started is None:
            return False
        known = max((self.revision, self.id), (self.started, LAST_ID))
        return (
            self.epoch != page.epoch
            or max(self.revision, self.started) > page.revision
            or known < (page.purged_revision, LAST_ID)
        )

    def after(self, page: Changes) -> SyncToken:
        """Return the token for the end of this page."""
        started = page.revision if self.started is None else self.started
        if page.more:
            last = page.changes[-1]
            return SyncToken(page.epoch, last.revision, last.id, started)
        return SyncToken(page.epoch, page.revision, LAST_ID, started)

    def text(self, owner: UUID) -> str:
        """Return the token as the owner's clients get it. It must come from `after`."""
        assert self.epoch is not None  # noqa: S101  of every page
        assert self.started is not None  # noqa: S101
        fields = (owner.bytes, self.epoch.bytes, self.revision, self.id.bytes, self.started)
        return urlsafe_b64encode(FORMAT.pack(VERSION, *fields)).decode().rstrip("=")


def read_sync_token(text: str, owner: UUID) -> SyncToken:
    """Return the token of a page's `next`, or a new one for 0; 422 for anything else."""
    if text == "0":
        return SyncToken()
    token = decode_sync_token(text, owner)
    if token is None:
        detail = "Must be 0, or next of a page of changes of this user."
        raise invalid([{"parameter": "since", "detail": detail}])
    # Of a user who had nothing: all of it is new.
    return SyncToken() if token.revision == 0 else token


def decode_sync_token(text: str, owner: UUID) -> SyncToken | None:
    """Return the token that `text` made for this owner, or None for any other text."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        version, user, epoch, revision, item_id, started = FORMAT.unpack(data)
    except (ValueError, struct.error):
        return None
    is_ours = version == VERSION and user == owner.bytes and revision >= 0 <= started
    token = SyncToken(UUID(bytes=epoch), revision, UUID(bytes=item_id), started)
    # Base64 decoding ignores foreign characters and unused bits.
    return token if is_ours and token.text(owner) == text else None


# For the OpenAPI document.
EXAMPLE = SyncToken(UUID(int=1), REVISION, LAST_ID, REVISION).text(UUID(USER_ID))
