"""Read the changes since a sync token."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    LargeBinary,
    Uuid,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
)

from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.db.tables import database_state, users
from todo_api.resources.feeds import merge_branches
from todo_api.resources.pages import count_fitting
from todo_api.resources.representation import as_bytes, json_id, json_number, json_object, json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Select

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource
    from todo_api.resources.sync_tokens import SyncToken

# The client has all changes up to this position, in the order of revision and id.
REVISION = bindparam("revision", type_=BigInteger)
AFTER_ID = bindparam("after_id", type_=Uuid)
# The owner's revision when the client's full sync began; NULL before its first page.
FULL_SYNC_START = bindparam("full_sync_start", type_=BigInteger)


ZERO: Any = literal_column("0", BigInteger)


class Change(NamedTuple):
    """An entry of `changes` as JSON, and its position. The item may be a tombstone."""

    json: Json
    revision: int
    id: UUID


class Changes(NamedTuple):
    """A page of changes in order, and the state of the owner and of the database.

    `revision` and `purged_revision` are 0 for an owner without any writes.
    """

    revision: int
    purged_revision: int
    epoch: UUID
    changes: list[Change]
    more: bool


@cache
def changes_statement(resources: tuple[Resource, ...]) -> Statement:
    """Return a statement for the owner's state and the changes after a position, in one snapshot.

    Deletions before the start of the client's full sync are left out: the client never received
    these items.
    """
    owner_row = (
        select(users.c.revision, users.c.purged_revision).where(users.c.id == OWNER).cte("owner")
    )
    owner_revision = func.coalesce(select(owner_row.c.revision).scalar_subquery(), ZERO)
    purged_revision = func.coalesce(select(owner_row.c.purged_revision).scalar_subquery(), ZERO)
    epoch = select(database_state.c.epoch).scalar_subquery()

    def changed(resource: Resource) -> Select[Any]:
        columns, statements = resource.table.c, resource.statements
        position = {
            "type": json_text(f'"{resource.name}"'),
            "id": json_id(columns.id),
            "revision": json_number(columns.revision),
        }
        live = {"deleted": json_text("false"), "value": statements.json}
        tombstone = {"deleted": json_text("true"), "deleted_at": statements.deleted_at}
        json = case(
            (statements.is_live, json_object(position | live)),
            else_=json_object(position | tombstone),
        )
        return select(
            as_bytes(json).label("json"),
            columns.revision,
            columns.id,
            null().cast(BigInteger).label("purged_revision"),
        ).where(
            columns.user_id == OWNER,
            tuple_(columns.revision, columns.id) > tuple_(REVISION, AFTER_ID),
            or_(
                statements.is_live,
                columns.revision > func.coalesce(FULL_SYNC_START, owner_revision),
            ),
        )

    page = merge_branches(resources, changed, ("revision", "id")).subquery("page")
    first = select(
        null().cast(LargeBinary).label("json"),
        owner_revision.label("revision"),
        epoch.label("id"),
        purged_revision.label("purged_revision"),
    )
    return compiled(union_all(first, select(*page.c)))


def list_changes(
    database: Database,
    owner: UUID,
    resources: tuple[Resource, ...],
    token: SyncToken,
    limit: int,
) -> Changes:
    """Return at most `limit` changes that the client with this token does not have.

    If `limit` is 1, there may be two: see `count_complete`.
    """
    statement = changes_statement(resources)
    rows = database.all(
        owner,
        statement,
        revision=token.revision,
        after_id=token.id,
        full_sync_start=token.full_sync_start,
        # One more than the longest page shows whether there are more.
        rows=limit + 2,
    )
    changes = []
    for json, revision, id_or_epoch, purged in rows:
        if json is None:  # the first row
            state = (revision, purged, id_or_epoch)
        else:
            changes.append(Change(json, revision, id_or_epoch))
    number = count_complete(changes, count_fitting([change.json for change in changes[:limit]]))
    return Changes(*state, changes[:number], number < len(changes))


def count_complete(changes: Sequence[Change], number: int) -> int:
    """Return where a page of about this number of changes can end: not within one position.

    A client may have made the same id for a list and for a task. Both have one position if one
    request has changed them.
    """

    def is_within_position(end: int) -> bool:
        return 0 < end < len(changes) and changes[end - 1][1:] == changes[end][1:]

    if not is_within_position(number):
        return number
    return number - 1 or number + 1
