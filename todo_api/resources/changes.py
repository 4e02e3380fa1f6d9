"""Read the changes of a resource since a revision: the statement behind the sync."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    bindparam,
    case,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)

from todo_api.db.statement import OWNER, Statement
from todo_api.resources.pages import NOT_KNOWN, ROWS, count_fitting, owner_row, with_owner
from todo_api.resources.statements import json_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource

SINCE = bindparam("since", type_=BigInteger)
START = bindparam("start", type_=BigInteger)


class Change(NamedTuple):
    """An item as it is, or that it was deleted; its revision, and when it changed."""

    json: Json
    revision: int
    moment: datetime


class Changes(NamedTuple):
    """A page of changes in order, and what tells whether they follow on what a client has.

    `before` is when the latest change up to `since` was made that is still known, `latest` when the
    latest one of all was. Each is None without such a change.
    """

    revision: int
    purged_revision: int
    before: datetime | None
    latest: datetime | None
    changes: list[Change]
    more: bool


@cache
def changes_statement(resource: Resource) -> Statement:
    """Return a page of changes after `since`, and of deletions those after `start`."""
    columns, statements = resource.table.c, resource.statements
    change = case(
        (statements.is_live, json_object(statements.members | {"deleted": false()})),
        else_=json_object(
            {"id": columns.id, "revision": columns.revision, "deleted": true()}
            | statements.deleted_at
        ),
    )
    latest = (
        select(columns.updated_at)
        .where(columns.user_id == OWNER)
        .order_by(columns.revision.desc())
        .limit(literal_column("1"))
    )
    # A client that starts a full sync has never heard of what was deleted before.
    owner_revision = select(owner_row.c.revision).scalar_subquery()
    is_told = or_(statements.is_live, columns.revision > func.coalesce(START, owner_revision))
    page = (
        select(
            change.label("json"),
            columns.revision.label("revision"),
            null().cast(BigInteger).label("purged_revision"),
            columns.updated_at.label("before"),
            null().cast(DateTime(timezone=True)).label("latest"),
        )
        .where(columns.user_id == OWNER, columns.revision > SINCE, is_told, NOT_KNOWN)
        .order_by(columns.revision)
        .limit(ROWS)
    )
    return with_owner(
        page,
        owner_row.c.revision,
        owner_row.c.purged_revision,
        latest.where(columns.revision <= SINCE).scalar_subquery(),
        latest.scalar_subquery(),
    )


def list_changes(
    database: Database,
    owner: UUID,
    resource: Resource,
    *,
    since: int,
    start: int | None,
    limit: int,
    known: Sequence[int] = (),
) -> Changes:
    """Return what has changed after `since`, in order; of deletions, those after `start`.

    Without a `start`, a full sync starts now.
    """
    statement = changes_statement(resource)
    rows = database.all(
        owner, statement, since=since, start=start, rows=limit + 1, known=list(known)
    )
    of_owner: tuple[int, int, datetime | None, datetime | None] = (0, 0, None, None)
    changes = []
    for json, *others in rows:
        if json is None:
            of_owner = (others[0], others[1], others[2], others[3])
        else:
            changes.append(Change(json, others[0], others[2]))
    page = changes[: count_fitting([change.json for change in changes[:limit]])]
    return Changes(*of_owner, page, len(page) < len(changes))
