"""Conditional requests, as RFC 9110 (section 13) has them, on revisions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from todo_api.errors import malformed_header
from todo_api.messages import current_request

if TYPE_CHECKING:
    from collections.abc import Iterator

# The version of a task's representation, in front of its revision in an ETag: a deploy that adds a
# field must not pass off as unchanged what a client kept from before.
REPRESENTATION = 1

# Of its parts no two can match the same text, or a field of commas would take for ever to refuse.
ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
ENTITY_TAGS = re.compile(rf"\*|[ \t,]*{ENTITY_TAG}(?:[ \t]*,[ \t,]*{ENTITY_TAG})*[ \t,]*")
TAGS_LENGTH = 4000
REVISION = re.compile(rf"{REPRESENTATION}\.([0-9]{{1,18}})(?:-([0-9a-f]+))?")


def etag(revision: int, query: str | None = None) -> str:
    """The strong entity tag of a revision; of a collection's, with what tells its query."""
    return (
        f'"{REPRESENTATION}.{revision}"'
        if query is None
        else f'"{REPRESENTATION}.{revision}-{query}"'
    )


@dataclass(frozen=True)
class Tags:
    """What an If-Match or If-None-Match field lists; `any` is its `*`."""

    listed: tuple[str, ...]
    any: bool = False

    def revisions(self, query: str | None = None, *, weak: bool) -> list[int]:
        """The revisions that the tags of ours name; a weak tag counts where `weak` says so."""
        return list(self._revisions(query, weak=weak))

    def _revisions(self, query: str | None, *, weak: bool) -> Iterator[int]:
        for tag in self.listed:
            if tag.startswith("W/") and not weak:
                continue
            named = REVISION.fullmatch(tag.removeprefix("W/").strip('"'))
            if named and named[2] == query:
                yield int(named[1])


def tags(name: str) -> Tags | None:
    """The tags of this field of the request, or None without one. Malformed ones are a 400."""
    field = current_request().field(name)
    if field is None:
        return None
    if len(field) > TAGS_LENGTH:
        raise malformed_header(name, f"Must have at most {TAGS_LENGTH} characters.")
    if not ENTITY_TAGS.fullmatch(field):
        raise malformed_header(
            name, f"Must be *, or entity tags like {etag(7)} with commas between."
        )
    return Tags(tuple(re.findall(ENTITY_TAG, field)), any=field == "*")
