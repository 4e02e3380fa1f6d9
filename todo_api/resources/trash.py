"""Read and empty an owner's trash: the deleted rows of all resources."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import Uuid, bindparam, select, tuple_

from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.resources.calendar_types import TimestampType, microseconds
from todo_api.resources.feeds import merge_branches
from todo_api.resources.pages import Position, count_fitting
from todo_api.resources.representation import as_bytes, json_id, json_object, json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Select

    from todo_api.db.connection import Json
    from todo_api.db.database import Database
    from todo_api.resources.resource import Resource


class TrashPage(NamedTuple):
    """The JSON of each entry, and the position of the page's end, or None for the last page."""

    entries: list[Json]
    end: Position | None


@cache
def trash_statement(resources: tuple[Resource, ...], *, after: bool = False) -> Statement:
    """Return a statement for a page of the trash, the latest deletion first."""

    def trashed(resource: Resource) -> Select[Any]:
        columns, statements = resource.table.c, resource.statements
        json = json_object(
            {
                "type": json_text(f'"{resource.name}"'),
                "id": json_id(columns.id),
                "deleted_at": statements.deleted_at,
                "purge_at": statements.purge_at,
                "value": statements.json,
            }
        )
        page = select(as_bytes(json).label("json"), columns.deleted_at, columns.id)
        page = page.where(columns.user_id == OWNER, statements.is_deleted)
        if after:
            end = tuple_(
                bindparam("after_deleted_at", type_=columns.deleted_at.type),
                bindparam("after_id", type_=Uuid),
            )
            page = page.where(tuple_(columns.deleted_at, columns.id) < end)
        return page

    return compiled(merge_branches(resources, trashed, ("deleted_at", "id"), descending=True))


def list_trash(
    database: Database,
    owner: UUID,
    resources: tuple[Resource, ...],
    limit: int,
    after: Position | None = None,
) -> TrashPage:
    """Return at most `limit` entries of the trash, after a position."""
    parameters: dict[str, Any] = {"rows": limit + 1}
    if after is not None:
        deleted_before = TimestampType().to_parameter(after.value)
        parameters |= {"after_deleted_at": deleted_before, "after_id": after.id}
    statement = trash_statement(resources, after=after is not None)
    rows: list[tuple[Json, datetime, UUID]] = [
        (json, deleted_at, item_id)
        for json, deleted_at, item_id in database.all(owner, statement, **parameters)
    ]
    count = count_fitting([json for json, _, _ in rows[:limit]])
    end = None
    if count < len(rows):
        _, deleted_at, item_id = rows[count - 1]
        end = Position(microseconds(deleted_at), item_id)
    return TrashPage([json for json, _, _ in rows[:count]], end)


def empty_trash(database: Database, owner: UUID, resources: Sequence[Resource]) -> None:
    """Remove the owner's deleted rows for good.

    All rows are locked before the first of them is removed, which locks the owner's row.
    """
    statements = [
        *(resource.statements.lock_trash for resource in resources),
        *(resource.statements.empty_trash for resource in resources),
    ]
    database.write(owner, statements, {}, retry=statements)
