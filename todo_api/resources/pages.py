"""Pages of a list: filtered, sorted, and beginning after a cursor; and the count of its items."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    Integer,
    LargeBinary,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.db.tables import users
from todo_api.resources.representation import as_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource

# A page has at most this number of bytes, so it may have fewer items than its limit.
PAGE_BYTES = 1024 * 1024

# The size of each cache of statements: one for each combination of filters, sort and cursor.
LIST_STATEMENTS = 512

ROWS = bindparam("rows", type_=Integer)
# The revisions in the client's If-None-Match.
CLIENT_REVISIONS = bindparam("client_revisions", type_=ARRAY(BigInteger))

owner_row = select(users.c.revision).where(users.c.id == OWNER).cte("owner")

# No page is read if the client has the page of the owner's current revision.
CLIENT_IS_OUTDATED = ~exists().where(owner_row.c.revision == any_(CLIENT_REVISIONS))


class Position(NamedTuple):
    """Where a page of a list ended: the sort key's value, as in a cursor, and the id."""

    value: Any
    id: UUID


class ListQuery(NamedTuple):
    """A list's query: at most `limit` items that pass all filters, after a position.

    `filters` has the value of each filter's query parameter.
    """

    filters: Mapping[str, Any]
    limit: int
    sort: str = "-created_at"
    after: Position | None = None


class Page(NamedTuple):
    """The owner's revision, the items, and the end of the page, or None for the last page.

    There are no items if the client has the page of this revision.
    """

    revision: int
    items: list[Json]
    end: Position | None


def list_conditions(resource: Resource, filters: Sequence[str]) -> list[ColumnElement[bool]]:
    """Return the conditions on the rows of a list with these filters."""
    return [
        resource.table.c.user_id == OWNER,
        resource.statements.is_live,
        *(resource.filters[name].condition for name in filters),
        CLIENT_IS_OUTDATED,
    ]


@lru_cache(maxsize=LIST_STATEMENTS)
def list_statement(
    resource: Resource,
    filters: tuple[str, ...] = (),
    sort: str = "-created_at",
    *,
    after: bool = False,
) -> Statement:
    """Return a statement for the owner's revision and a page of the list, in one snapshot."""
    table, statements = resource.table, resource.statements
    key = resource.sort_keys[sort.removeprefix("-")]
    is_descending = sort.startswith("-")
    expression = key.expression
    order = (expression.desc(), table.c.id.desc()) if is_descending else (expression, table.c.id)
    page = (
        select(as_bytes(statements.json).label("json"), null().cast(BigInteger).label("revision"))
        .where(*list_conditions(resource, filters))
        .order_by(*order)
        .limit(ROWS)
    )
    if after:
        row = tuple_(expression, table.c.id)
        end = tuple_(bindparam("after_value", type_=key.type), bindparam("after_id", type_=Uuid))
        page = page.where(row < end if is_descending else row > end)
    first = select(null().cast(LargeBinary).label("json"), owner_row.c.revision)
    return compiled(union_all(first, select(*page.subquery("page").c)))


def list_items(
    database: Database,
    owner: UUID,
    resource: Resource,
    query: ListQuery,
    client_revisions: Sequence[int] = (),
) -> Page:
    """Return a page of at most PAGE_BYTES, but of at least one item if there is one.

    `client_revisions` are the revisions in the client's If-None-Match: if the owner's revision is
    one of them, the page is not read.
    """
    filters, sort, after = query.filters, query.sort, query.after
    names = tuple(sorted(filters))
    is_after = after is not None
    statement = list_statement(resource, names, sort, after=is_after)
    # One row more than the limit shows whether there is a next page.
    parameters = filter_parameters(resource, filters)
    parameters |= {"rows": query.limit + 1, "client_revisions": list(client_revisions)}
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


def filter_parameters(resource: Resource, filters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statement's parameters for these values of query parameters."""
    return {name: resource.filters[name].to_parameter(value) for name, value in filters.items()}


@lru_cache(maxsize=LIST_STATEMENTS)
def count_statement(resource: Resource, filters: tuple[str, ...] = ()) -> Statement:
    """Return a statement for the owner's revision and the number of items, in one snapshot."""
    count = (
        select(func.count()).select_from(resource.table).where(*list_conditions(resource, filters))
    )
    return compiled(select(owner_row.c.revision, count.scalar_subquery().label("count")))


def count_items(
    database: Database,
    owner: UUID,
    resource: Resource,
    filters: Mapping[str, Any],
    client_revisions: Sequence[int] = (),
) -> tuple[int, int]:
    """Return the owner's revision, and the number of items that pass all filters.

    If the owner's revision is one of `client_revisions`, no items are counted.
    """
    statement = count_statement(resource, tuple(sorted(filters)))
    parameters = filter_parameters(resource, filters)
    row = database.one(owner, statement, **parameters, client_revisions=list(client_revisions))
    return (row[0], row[1]) if row else (0, 0)


def count_fitting(page: Sequence[Json]) -> int:
    """Return how many of these items fit into a page: at least one."""
    size = 0
    for count, json in enumerate(page):
        size += len(json) + 2
        if size > PAGE_BYTES:
            return max(count, 1)
    return len(page)
