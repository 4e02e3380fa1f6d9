"""Pages of a collection: filtered, sorted, and beginning after a cursor; and its count."""

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
    Text,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    null,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.db.tables import users
from todo_api.resources.representation import as_bytes
from todo_api.resources.time_zones import DEFAULT_TIME_ZONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource
    from todo_api.resources.time_zones import Day

# A page has at most this number of bytes, so it may have fewer items than its limit.
PAGE_BYTES = 1024 * 1024

# The size of each cache of statements: one for each combination of filters, sort and cursor.
LIST_STATEMENTS = 512

ROWS = bindparam("rows", type_=Integer)
# The revisions in the client's If-None-Match.
CLIENT_REVISIONS = bindparam("client_revisions", type_=ARRAY(BigInteger))

owner_row = select(users.c.revision, users.c.time_zone).where(users.c.id == OWNER).cte("owner")

# No page is read if the client has the page of the owner's current revision.
CLIENT_IS_OUTDATED = ~exists().where(owner_row.c.revision == any_(CLIENT_REVISIONS))

# No page is read if the owner's time zone is not the one with which the parameters were computed.
# If the parameter is NULL, the owner's time zone does not matter.
EXPECTED_ZONE = bindparam("expected_zone", type_=Text)
ZONE_IS_AS_EXPECTED = or_(
    EXPECTED_ZONE.is_(None), exists().where(owner_row.c.time_zone == EXPECTED_ZONE)
)


class Position(NamedTuple):
    """The end of a page: the sort key's value, as in a cursor, and the id.

    `day` is the day of the first page if the query depends on the day.
    """

    value: Any
    id: UUID
    day: Day | None = None


class Filters(NamedTuple):
    """The value of each filter's query parameter, and the day for those that depend on it.

    If `is_owners_zone`, the result is valid only if the day's time zone is the owner's.
    """

    values: Mapping[str, Any]
    day: Day | None = None
    is_owners_zone: bool = False

    def conditions(self, resource: Resource) -> tuple[str, ...]:
        """Return the names of the filters, with `=` for those with a single value."""
        return tuple(
            sorted(
                f"{name}=" if is_single(resource, name, value) else name
                for name, value in self.values.items()
            )
        )


def is_single(resource: Resource, name: str, value: Any) -> bool:
    """Return whether the filter's condition for a single value applies."""
    declared = resource.filters[name]
    return declared.single is not None and len(value) == 1 and value[0] != declared.not_single


class ListQuery(NamedTuple):
    """A query for a page: at most `limit` items that pass all filters, after a position."""

    filters: Filters
    limit: int
    sort: str = "-created_at"
    after: Position | None = None


class Page(NamedTuple):
    """The owner's revision and time zone, the items, and the end, or None for the last page.

    There are no items if the client has the page of this revision, or if the owner's time zone is
    not the one of the query's filters.
    """

    revision: int
    time_zone: str
    items: list[Json]
    end: Position | None


class Count(NamedTuple):
    """The owner's revision and time zone, and the number of items.

    `groups` has the values of a field, each with its number of items.
    """

    revision: int
    time_zone: str
    number: int
    groups: Sequence[tuple[Any, int]] = ()


# The revision and time zone of a user who has never changed anything.
NO_OWNER = (0, DEFAULT_TIME_ZONE)


def list_conditions(resource: Resource, filters: Sequence[str]) -> list[ColumnElement[bool]]:
    """Return the conditions on the rows of a page; `filters` are from `Filters.conditions`."""
    used = [resource.filters[name.removesuffix("=")] for name in filters]
    return [
        resource.table.c.user_id == OWNER,
        resource.statements.is_live,
        *(
            single
            if name.endswith("=") and (single := declared.single) is not None
            else declared.condition
            for name, declared in zip(filters, used, strict=True)
        ),
        CLIENT_IS_OUTDATED,
        *([ZONE_IS_AS_EXPECTED] if any(declared.is_by_day for declared in used) else []),
    ]


@lru_cache(maxsize=LIST_STATEMENTS)
def list_statement(
    resource: Resource,
    filters: tuple[str, ...] = (),
    sort: str = "-created_at",
    *,
    after: bool = False,
) -> Statement:
    """Return a statement for the owner's state and a page of the items, in one snapshot."""
    table, statements = resource.table, resource.statements
    key = resource.sort_keys[sort.removeprefix("-")]
    is_descending = sort.startswith("-")
    expression = key.expression
    order = (expression.desc(), table.c.id.desc()) if is_descending else (expression, table.c.id)
    page = (
        select(
            as_bytes(statements.json).label("json"),
            null().cast(BigInteger).label("revision"),
            null().cast(Text).label("time_zone"),
        )
        .where(*list_conditions(resource, filters))
        .order_by(*order)
        .limit(ROWS)
    )
    if after:
        row = tuple_(expression, table.c.id)
        end = tuple_(bindparam("after_value", type_=key.type), bindparam("after_id", type_=Uuid))
        page = page.where(row < end if is_descending else row > end)
    first = select(
        null().cast(LargeBinary).label("json"), owner_row.c.revision, owner_row.c.time_zone
    )
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
    names = filters.conditions(resource)
    statement = list_statement(resource, names, sort, after=after is not None)
    # One row more than the limit shows whether there is a next page.
    parameters = filter_parameters(resource, filters)
    parameters |= {"rows": query.limit + 1, "client_revisions": list(client_revisions)}
    key = resource.sort_keys[sort.removeprefix("-")]
    if after is not None:
        parameters |= {"after_value": key.to_parameter(after.value), "after_id": after.id}
    owner_state, rows = NO_OWNER, []
    for json, *state in database.all(owner, statement, **parameters):
        if json is None:
            revision, time_zone = state
            owner_state = (revision, time_zone)
        else:
            rows.append(json)
    page = rows[: count_fitting(rows[: query.limit])]
    end = None
    if len(page) < len(rows):
        members = orjson.loads(page[-1])
        # The JSON of a row that is not yet renewed lacks the newest members: they have the default.
        values = (members.get(name, resource.by_name[name].default) for name in key.members)
        value = key.to_cursor(*values)
        end = Position(value, UUID(members["id"]), filters.day)
    return Page(*owner_state, page, end)


def filter_parameters(resource: Resource, filters: Filters) -> dict[str, Any]:
    """Return the statement's parameters for these filters."""
    parameters = {
        name: resource.filters[name].to_parameter(
            value[0] if is_single(resource, name, value) else value
        )
        for name, value in filters.values.items()
    }
    if filters.day is not None:
        expected_zone = filters.day.time_zone if filters.is_owners_zone else None
        parameters |= {**filters.day.parameters(), "expected_zone": expected_zone}
    return parameters


@lru_cache(maxsize=LIST_STATEMENTS)
def count_statement(
    resource: Resource, filters: tuple[str, ...] = (), by: str | None = None
) -> Statement:
    """Return a statement for the owner's state and the number of items, in one snapshot.

    The first row has the number of all items. With `by`, a row for each value of this field
    follows.
    """
    conditions = list_conditions(resource, filters)
    count = select(func.count()).select_from(resource.table).where(*conditions)
    field = resource.table.c[by or "id"]
    first = select(
        owner_row.c.revision,
        owner_row.c.time_zone,
        null().cast(field.type).label("value"),
        count.scalar_subquery().label("count"),
    )
    if by is None:
        return compiled(first)
    groups = (
        select(
            null().cast(BigInteger),
            null().cast(Text),
            field,
            func.count(),
        )
        .where(*conditions)
        .group_by(field)
    )
    return compiled(union_all(first, groups))


def count_items(
    database: Database,
    owner: UUID,
    resource: Resource,
    filters: Filters,
    client_revisions: Sequence[int] = (),
    by: str | None = None,
) -> Count:
    """Return the number of items that pass all filters, and the owner's state.

    If `by` is the name of a field, the result also has the number for each of its values. If the
    owner's revision is one of `client_revisions`, or if the owner's time zone is not the one of the
    filters, no items are counted.
    """
    statement = count_statement(resource, filters.conditions(resource), by)
    parameters = filter_parameters(resource, filters)
    rows = database.all(owner, statement, **parameters, client_revisions=list(client_revisions))
    if not rows:
        return Count(*NO_OWNER, 0)
    (revision, time_zone, _, number), *groups = rows
    return Count(revision, time_zone, number, [(value, count) for _, _, value, count in groups])


def count_fitting(page: Sequence[Json]) -> int:
    """Return how many of these items fit into a page: at least one."""
    size = 0
    for count, json in enumerate(page):
        size += len(json) + 2
        if size > PAGE_BYTES:
            return max(count, 1)
    return len(page)
