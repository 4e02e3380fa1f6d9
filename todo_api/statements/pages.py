"""What is read of many tasks: pages of the list, of the trash and of what has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON

from todo_api.database import Database, compiled
from todo_api.statements.tasks import DELETED_AT, MEMBERS, OWNER, PURGE_AT, json_object, task_json
from todo_api.tables import DELETED, LIVE, tasks, users

if TYPE_CHECKING:
    from todo_api.connection import Json, Statement

# A page ends at this many bytes, even if fewer tasks than its limit are in it.
PAGE_BYTES = 1024 * 1024

MOMENT = DateTime(timezone=True)
ROWS = bindparam("rows", type_=Integer)
KNOWN = bindparam("known", type_=ARRAY(BigInteger))

# What a list can be sorted by; titles by code point, which is the same on every server.
SORTS: dict[str, tuple[ColumnElement[Any], Any]] = {
    "created_at": (tasks.c.created_at, MOMENT),
    "updated_at": (tasks.c.updated_at, MOMENT),
    "title": (tasks.c.title.collate("C"), Text),
}

# What a list can be narrowed by. The pattern of q is escaped by who gives it.
FILTERS: dict[str, ColumnElement[bool]] = {
    "completed": tasks.c.completed == bindparam("completed", type_=Boolean),
    "created_after": tasks.c.created_at > bindparam("created_after", type_=MOMENT),
    "created_before": tasks.c.created_at < bindparam("created_before", type_=MOMENT),
    "updated_after": tasks.c.updated_at > bindparam("updated_after", type_=MOMENT),
    "updated_before": tasks.c.updated_at < bindparam("updated_before", type_=MOMENT),
    "q": or_(
        tasks.c.title.ilike(bindparam("q", type_=Text)),
        tasks.c.description.ilike(bindparam("q", type_=Text)),
    ),
}


class Position(NamedTuple):
    """Where a page of the list ended: the next one goes on behind it."""

    value: datetime | str
    id: UUID


class Page(NamedTuple):
    """The owner's revision, the tasks unless the client knows that revision, and the page's end."""

    revision: int
    tasks: list[Json]
    end: Position | None


class Change(NamedTuple):
    """A task as it is, or that it was deleted; its revision, and when that was."""

    json: Json
    revision: int
    moment: datetime


class Changes(NamedTuple):
    """A page of changes in order, and what tells whether they follow on what a client has.

    `before` is when the last change up to `since` was made that is still there, `latest` when the
    last one of all was.
    """

    revision: int
    purged_revision: int
    before: datetime | None
    latest: datetime | None
    changes: list[Change]
    more: bool


owner = select(users.c.revision, users.c.purged_revision).where(users.c.id == OWNER).cte("owner")

# A client that knows the owner's revision is sent no page, and none is read: one row is enough.
NOT_KNOWN = ~exists().where(owner.c.revision == any_(KNOWN))


def with_owner(page: Select[Any, *tuple[Any, ...]], *of_owner: ColumnElement[Any]) -> Statement:
    """The owner's row, and then the page's rows, all of one snapshot.

    The owner's has `of_owner` where the others have their columns behind the JSON.
    """
    rows = page.subquery("page")
    first = select(null().cast(JSON).label("json"), *of_owner).select_from(owner)
    return compiled(union_all(first, select(*rows.c)))


@lru_cache(maxsize=512)
def list_statement(
    filters: tuple[str, ...] = (),
    sort: str = "-created_at",
    *,
    after: bool = False,
    deleted: bool = False,
) -> Statement:
    """A page of the list or of the trash, narrowed, sorted, and from a position on."""
    column, type_ = SORTS[sort.removeprefix("-")]
    descending = sort.startswith("-")
    order = (column.desc(), tasks.c.id.desc()) if descending else (column, tasks.c.id)
    json = json_object(**MEMBERS, **DELETED_AT, **PURGE_AT) if deleted else task_json
    page = (
        select(json.label("json"), null().cast(BigInteger).label("revision"))
        .where(tasks.c.user_id == OWNER, DELETED if deleted else LIVE)
        .where(*(FILTERS[name] for name in filters), NOT_KNOWN)
        .order_by(*order)
        .limit(ROWS)
    )
    if after:
        here = tuple_(column, tasks.c.id)
        there = tuple_(bindparam("after_value", type_=type_), bindparam("after_id", type_=Uuid))
        page = page.where(here < there if descending else here > there)
    return with_owner(page, owner.c.revision)


def list_tasks(
    database: Database,
    user: UUID,
    filters: Mapping[str, Any],
    *,
    limit: int,
    sort: str = "-created_at",
    deleted: bool = False,
    after: Position | None = None,
    known: Sequence[int] = (),
) -> Page:
    """The owner's tasks: at most `limit`, at most PAGE_BYTES, at least one if there is one."""
    statement = list_statement(
        tuple(sorted(filters)), sort, after=after is not None, deleted=deleted
    )
    # One row more than the page has tells whether there is more.
    parameters: dict[str, Any] = {**filters, "rows": limit + 1, "known": list(known)}
    if after is not None:
        parameters |= {"after_value": after.value, "after_id": after.id}
    revision, rows = 0, []
    for json, owners in database.all(user, statement, **parameters):
        if json is None:
            revision = owners
        else:
            rows.append(json)
    page = rows[: fitting(rows[:limit])]
    return Page(revision, page, end_of(page[-1], sort) if len(page) < len(rows) else None)


def fitting(page: Sequence[Json]) -> int:
    """How many of these fit into a page."""
    size = 0
    for count, json in enumerate(page):
        size += len(json) + 2
        if size > PAGE_BYTES:
            return max(count, 1)
    return len(page)


def end_of(task: Json, sort: str) -> Position:
    fields = orjson.loads(task)
    value = fields[sort.removeprefix("-")]
    return Position(
        value if sort.endswith("title") else datetime.fromisoformat(value), UUID(fields["id"])
    )


SINCE = bindparam("since", type_=BigInteger)
START = bindparam("start", type_=BigInteger)

change_json = case(
    (LIVE, json_object(**MEMBERS, deleted=false())),
    else_=json_object(id=tasks.c.id, revision=tasks.c.revision, deleted=true(), **DELETED_AT),
)
latest = (
    select(tasks.c.updated_at)
    .where(tasks.c.user_id == OWNER)
    .order_by(tasks.c.revision.desc())
    .limit(literal_column("1"))
)

# Of what was deleted before a full sync began, the client has never heard.
CHANGES = with_owner(
    select(
        change_json.label("json"),
        tasks.c.revision.label("revision"),
        null().cast(BigInteger).label("purged_revision"),
        tasks.c.updated_at.label("before"),
        null().cast(MOMENT).label("latest"),
    )
    .where(
        tasks.c.user_id == OWNER,
        tasks.c.revision > SINCE,
        or_(
            LIVE,
            tasks.c.revision > func.coalesce(START, select(owner.c.revision).scalar_subquery()),
        ),
        NOT_KNOWN,
    )
    .order_by(tasks.c.revision)
    .limit(ROWS),
    owner.c.revision,
    owner.c.purged_revision,
    latest.where(tasks.c.revision <= SINCE).scalar_subquery(),
    latest.scalar_subquery(),
)


def list_changes(
    database: Database,
    user: UUID,
    *,
    since: int,
    start: int | None,
    limit: int,
    known: Sequence[int] = (),
) -> Changes:
    """What has changed after `since`, in order; of deletions, those after `start`.

    Without a `start`, a full sync starts now.
    """
    rows = database.all(user, CHANGES, since=since, start=start, rows=limit + 1, known=list(known))
    of_owner: tuple[int, int, datetime | None, datetime | None] = (0, 0, None, None)
    changes = []
    for json, *others in rows:
        if json is None:
            of_owner = (others[0], others[1], others[2], others[3])
        else:
            changes.append(Change(json, others[0], others[2]))
    page = changes[: fitting([change.json for change in changes[:limit]])]
    return Changes(*of_owner, page, len(page) < len(changes))
