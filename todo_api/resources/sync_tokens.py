"""Sync tokens: the position of a client in the changes of its user."""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from todo_api.web.fields import EXAMPLE_REVISION, EXAMPLE_USER_ID
from todo_api.web.problems import invalid

if TYPE_CHECKING:
    from todo_api.resources.changes import Changes

# In this order: the version of the format, the user's id, and the fields of SyncToken.
FORMAT = struct.Struct(">B16s16sq16sq")
VERSION = 1
FIRST_ID, LAST_ID = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(frozen=True)
class SyncToken:
    """The position of a client in the changes of its user.

    The client has all changes up to `(revision, id)`, in this order; after a last page, that is the
    owner's revision and the highest id. `full_sync_start` is the owner's revision when the full
    sync began; `epoch` identifies the history of the database. Both are None before the first page.
    """

    epoch: UUID | None = None
    revision: int = 0
    id: UUID = FIRST_ID
    full_sync_start: int | None = None

    def needs_full_sync(self, page: Changes) -> bool:
        """Return whether the client's copy cannot be updated from this page.

        This is so if the database was restored from a backup, if the user was erased, or if a row
        was purged that was deleted after the client's position and after the start of its full
        sync. A token from before the user's first change is invalid after that change, because the
        user may have been erased in between.
        """
        if self.full_sync_start is None:
            return False
        position = max((self.revision, self.id), (self.full_sync_start, LAST_ID))
        return (
            self.epoch != page.epoch
            or max(self.revision, self.full_sync_start) > page.revision
            or position < (page.purged_revision, LAST_ID)
        )

    def after(self, page: Changes) -> SyncToken:
        """Return the token for the position after this page."""
        full_sync_start = page.revision if self.full_sync_start is None else self.full_sync_start
        if page.more:
            last = page.changes[-1]
            return SyncToken(page.epoch, last.revision, last.id, full_sync_start)
        return SyncToken(page.epoch, page.revision, LAST_ID, full_sync_start)

    def text(self, owner: UUID) -> str:
        """Return the text that clients get. The token must come from `after`."""
        assert self.epoch is not None  # noqa: S101  `after` sets both
        assert self.full_sync_start is not None  # noqa: S101
        fields = (owner.bytes, self.epoch.bytes, self.revision, self.id.bytes, self.full_sync_start)
        return urlsafe_b64encode(FORMAT.pack(VERSION, *fields)).decode().rstrip("=")


def read_sync_token(text: str, owner: UUID) -> SyncToken:
    """Return the token that the text encodes, or a new token if the text is 0. Raises a 422."""
    if text == "0":
        return SyncToken()
    token = decode_sync_token(text, owner)
    if token is None:
        detail = "Must be 0, or the `next` from a response of this user's /changes."
        raise invalid([{"parameter": "since", "detail": detail}])
    return token


def decode_sync_token(text: str, owner: UUID) -> SyncToken | None:
    """Return the token, or None if the text is not a token for this owner."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        version, user, epoch, revision, item_id, full_sync_start = FORMAT.unpack(data)
    except (ValueError, struct.error):
        return None
    is_ours = version == VERSION and user == owner.bytes and revision >= 0 <= full_sync_start
    token = SyncToken(UUID(bytes=epoch), revision, UUID(bytes=item_id), full_sync_start)
    # Compare the texts, because base64 decoding ignores other characters and unused bits.
    return token if is_ours and token.text(owner) == text else None


# For the OpenAPI document.
EXAMPLE = SyncToken(UUID(int=1), EXAMPLE_REVISION, LAST_ID, EXAMPLE_REVISION).text(
    UUID(EXAMPLE_USER_ID)
)
