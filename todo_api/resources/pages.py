"""Pages of a list: filtered, sorted, and from a cursor on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    exists,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.db.tables import users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource

# A page ends at this many bytes, even if fewer items than its limit are in it.
PAGE_BYTES = 1024 * 1024

# Of the most recent combinations of filters and orders, the statements are kept.
LIST_STATEMENTS = 512

ROWS = bindparam("rows", type_=Integer)
KNOWN = bindparam("known", type_=ARRAY(BigInteger))

owner_row = select(users.c.revision).where(users.c.id == OWNER).cte("owner")

# For a client that knows the owner's revision, no page is read: the owner's row is enough.
NOT_KNOWN = ~exists().where(owner_row.c.revision == any_(KNOWN))


class Position(NamedTuple):
    """Where a page of a list ended: the sort key's value, as in a cursor, and the id."""

    value: Any
    id: UUID


class ListQuery(NamedTuple):
    """A list's query: items that pass all filters, from a position on, at most `limit`.

    `filters` has the value of each filter's query parameter.
    """

    filters: Mapping[str, Any]
    limit: int
    sort: str = "-created_at"
    after: Position | None = None


class Page(NamedTuple):
    """The owner's revision, the items unless the client knows that revision, and the page's end."""

    revision: int
    items: list[Json]
    end: Position | None


@lru_cache(maxsize=LIST_STATEMENTS)
def list_statement(
    resource: Resource,
    filters: tuple[str, ...] = (),
    sort: str = "-created_at",
    *,
    after: bool = False,
) -> Statement:
    """Return the owner's revision and a page of the list, of one snapshot.

    The page is filtered, sorted, and begins after a position.
    """
    table, statements = resource.table, resource.statements
    key = resource.sort_keys[sort.removeprefix("-")]
    is_descending = sort.startswith("-")
    expression = key.expression
    order = (expression.desc(), table.c.id.desc()) if is_descending else (expression, table.c.id)
    page = (
        select(statements.json.label("json"), null().cast(BigInteger).label("revision"))
        .where(table.c.user_id == OWNER, statements.is_live)
        .where(*(resource.filters[name].condition for name in filters), NOT_KNOWN)
        .order_by(*order)
        .limit(ROWS)
    )
    if after:
        row = tuple_(expression, table.c.id)
        end = tuple_(bindparam("after_value", type_=key.type), bindparam("after_id", type_=Uuid))
        page = page.where(row < end if is_descending else row > end)
    first = select(null().cast(Text).label("json"), owner_row.c.revision)
    return compiled(union_all(first, select(*page.subquery("page").c)))


def list_items(
    database: Database,
    owner: UUID,
    resource: Resource,
    query: ListQuery,
    known: Sequence[int] = (),
) -> Page:
    """Return a page of at most PAGE_BYTES, but of at least one item if there is one.

    `known` are the owner's revisions at which the client has this page.
    """
    filters, sort, after = query.filters, query.sort, query.after
    names = tuple(sorted(filters))
    is_after = after is not None
    statement = list_statement(resource, names, sort, after=is_after)
    # One row more than the page has tells whether there is more.
    parameters: dict[str, Any] = {
        name: resource.filters[name].to_parameter(value) for name, value in filters.items()
    }
    parameters |= {"rows": query.limit + 1, "known": list(known)}
    key = resource.sort_keys[sort.removeprefix("-")]
    if after is not None:
        parameters |= {"after_value": key.to_parameter(after.value), "after_id": after.id}
    revision, rows = 0, []
    for json, owner_revision in database.all(owner, statement, **parameters):
        if json is None:
            revision = owner_revision
        else:
            rows.append(json)
    page = rows[: count_fitting(rows[: query.limit])]
    end = None
    if len(page) < len(rows):
        members = orjson.loads(page[-1])
        end = Position(key.to_cursor(members[sort.removeprefix("-")]), UUID(members["id"]))
    return Page(revision, page, end)


def count_fitting(page: Sequence[Json]) -> int:
    """Return how many of these items fit into a page: at least one."""
    size = 0
    for count, json in enumerate(page):
        size += len(json) + 2
        if size > PAGE_BYTES:
            return max(count, 1)
    return len(page)
