"""Conditional requests (RFC 9110, section 13), with entity tags made of revisions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import current_app

from todo_api.web.problems import malformed_header, precondition_required
from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from collections.abc import Iterator

# No two parts of this pattern match the same text. Otherwise a field of many commas would take too
# much time (catastrophic backtracking).
ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
ENTITY_TAGS = re.compile(rf"\*|[ \t,]*{ENTITY_TAG}(?:[ \t]*,[ \t,]*{ENTITY_TAG})*[ \t,]*")
TAGS_LENGTH = 4000
SERVER_TAG = re.compile("(0|[1-9][0-9]{0,17})(?:-([0-9a-f]+))?")


def etag(revision: int, query: str | None = None) -> str:
    """Return the strong entity tag of a revision. `query` is the digest of a collection's query."""
    return f'"{revision}"' if query is None else f'"{revision}-{query}"'


@dataclass(frozen=True)
class EntityTags:
    """The entity tags of an If-Match or If-None-Match field; `is_any` stands for `*`."""

    listed: tuple[str, ...]
    is_any: bool = False

    def revisions(self, query: str | None = None, *, weak: bool) -> list[int]:
        """Return the revisions in tags that the server made; in weak tags only if `weak`."""
        return list(self._revisions(query, weak=weak))

    def _revisions(self, query: str | None, *, weak: bool) -> Iterator[int]:
        for tag in self.listed:
            if tag.startswith("W/") and not weak:
                continue
            match = SERVER_TAG.fullmatch(tag.removeprefix("W/").strip('"'))
            if match and match[2] == query:
                yield int(match[1])


def read_entity_tags(name: str) -> EntityTags | None:
    """Return the tags of the header field `name`, or None if it is missing. Raises a 400."""
    field = current_request().header(name)
    if field is None:
        return None
    if len(field) > TAGS_LENGTH:
        raise malformed_header(name, f"Must have at most {TAGS_LENGTH} characters.")
    if not ENTITY_TAGS.fullmatch(field):
        raise malformed_header(
            name, f"Must be *, or entity tags like {etag(7)} with commas between."
        )
    return EntityTags(tuple(re.findall(ENTITY_TAG, field)), is_any=field == "*")


@dataclass(frozen=True)
class Precondition:
    """The revisions at which a change applies.

    The revision must be in `match`, unless that is None, and must not be in `none_match`. With
    `is_never`, the change never applies (`If-None-Match: *` on a resource that exists).
    """

    match: Sequence[int] | None = None
    none_match: Sequence[int] = ()
    is_never: bool = False

    def holds(self, revision: int) -> bool:
        """Return whether the change applies at this revision."""
        if self.excludes(revision):
            return False
        return self.match is None or revision in self.match

    def excludes(self, revision: int) -> bool:
        """Return whether If-None-Match fails at this revision.

        If the resource already is as requested, a false If-Match is ignored (RFC 9110, section
        13.1.1). A false If-None-Match is never ignored (section 13.1.2).
        """
        return self.is_never or revision in self.none_match

    def parameters(self) -> dict[str, Any]:
        """Return the parameters for statements that check the precondition."""
        match = [] if self.is_never else self.match
        return {
            "match": None if match is None else list(match),
            "none_match": list(self.none_match),
        }


def read_precondition(revision: int | None = None) -> Precondition:
    """Return the precondition from If-Match, If-None-Match, and the revision in the body.

    Raises a 400 if a header is malformed, and a 428 if REQUIRE_IF_MATCH is set and the request has
    neither If-Match nor a revision.
    """
    tags, none_match = read_entity_tags("If-Match"), read_entity_tags("If-None-Match")
    if tags is None and revision is None and current_app.config["REQUIRE_IF_MATCH"]:
        raise precondition_required()
    match = None if tags is None or tags.is_any else tags.revisions(weak=False)
    if revision is not None:
        match = [revision] if match is None or revision in match else []
    return Precondition(
        match=match,
        none_match=none_match.revisions(weak=True) if none_match else (),
        is_never=none_match is not None and none_match.is_any,
    )
