"""What is done to tasks: one function, one statement, the owner first."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson
from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Text,
    Uuid,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)
from uuid_utils.compat import uuid7

from todo_api.database import Database, Json, Statement, compiled
from todo_api.tables import LIVE, tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER = bindparam("owner", type_=Uuid)
ID = bindparam("id", type_=Uuid)

# What a statement may set, by column. NULL is a value too: absent is not in the statement at all.
VALUES = {
    "title": bindparam("title", type_=Text),
    "description": bindparam("description", type_=Text),
    "completed": bindparam("completed", type_=Boolean),
}

# A page ends at this many bytes, even if fewer tasks than its limit are in it.
PAGE_BYTES = 1024 * 1024


class TaskRow(NamedTuple):
    """A task: its JSON, as PostgreSQL wrote it, its revision and its id."""

    json: Json
    revision: int
    id: UUID


class Position(NamedTuple):
    """Where a page of the list ended: the next one goes on behind it."""

    created_at: datetime
    id: UUID


class Page(NamedTuple):
    """A JSON array of tasks, and where it ended if there are more."""

    json: Json
    end: Position | None


def utc(column: ColumnElement[datetime]) -> ColumnElement[str]:
    """RFC 3339 in UTC, to the microsecond, whatever the server's time zone is."""
    return func.to_char(
        func.timezone(literal_column("'UTC'"), column),
        literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""),
    )


task_json = func.json_build_object(
    *(literal_column("'id'"), tasks.c.id),
    *(literal_column("'user_id'"), tasks.c.user_id),
    *(literal_column("'title'"), tasks.c.title),
    *(literal_column("'description'"), tasks.c.description),
    *(literal_column("'completed'"), tasks.c.completed),
    *(literal_column("'created_at'"), utc(tasks.c.created_at)),
    *(literal_column("'updated_at'"), utc(tasks.c.updated_at)),
    *(literal_column("'revision'"), tasks.c.revision),
)
TASK = (task_json, tasks.c.revision, tasks.c.id)

THE_TASK = (tasks.c.user_id == OWNER, tasks.c.id == ID, LIVE)

INSERT = compiled(insert(tasks).values(user_id=OWNER, id=ID, **VALUES).returning(*TASK))


def insert_task(database: Database, owner: UUID, values: Mapping[str, Any]) -> TaskRow:
    """The new task of `title`, `description` and `completed`, its id a UUIDv7."""
    row = database.one(owner, INSERT, id=uuid7(), **values)
    assert row is not None  # noqa: S101  INSERT ... RETURNING has a row or raises
    return TaskRow(*row)


FIND = compiled(select(*TASK).where(*THE_TASK))


def find_task(database: Database, owner: UUID, task_id: UUID) -> TaskRow | None:
    """The owner's task, or None if there is none that the owner may see."""
    row = database.one(owner, FIND, id=task_id)
    return TaskRow(*row) if row else None


@cache
def list_statement(*, completed: bool, after: bool) -> Statement:
    """A page, newest first; with a filter and from a position on, or without."""
    statement = (
        select(task_json)
        .where(tasks.c.user_id == OWNER, LIVE)
        .order_by(tasks.c.created_at.desc(), tasks.c.id.desc())
        .limit(bindparam("rows", type_=Integer))
    )
    if completed:
        statement = statement.where(tasks.c.completed == bindparam("completed", type_=Boolean))
    if after:
        position = tuple_(
            bindparam("after_created_at", type_=DateTime(timezone=True)),
            bindparam("after_id", type_=Uuid),
        )
        statement = statement.where(tuple_(tasks.c.created_at, tasks.c.id) < position)
    return compiled(statement)


def list_tasks(
    database: Database,
    owner: UUID,
    *,
    limit: int,
    completed: bool | None = None,
    after: Position | None = None,
) -> Page:
    """The owner's tasks, newest first: at most `limit`, at most PAGE_BYTES, at least one."""
    parameters: dict[str, Any] = {"rows": limit + 1}  # one more tells whether there is more
    if completed is not None:
        parameters["completed"] = completed
    if after is not None:
        parameters |= {"after_created_at": after.created_at, "after_id": after.id}
    statement = list_statement(completed=completed is not None, after=after is not None)
    rows: list[Json] = [json for (json,) in database.all(owner, statement, **parameters)]

    size = 0
    page: list[Json] = []
    for json in rows[:limit]:
        size += len(json) + 2
        if page and size > PAGE_BYTES:
            break
        page.append(json)
    return Page(
        b"[" + b",\n".join(page) + b"]", position(page[-1]) if len(page) < len(rows) else None
    )


def position(task: Json) -> Position:
    fields = orjson.loads(task)
    return Position(datetime.fromisoformat(fields["created_at"]), UUID(fields["id"]))


@cache
def update_statement(*columns: str) -> Statement:
    """The task with these columns set; the trigger leaves it alone where nothing differs."""
    return compiled(
        update(tasks)
        .where(*THE_TASK)
        .values({column: VALUES[column] for column in columns})
        .returning(*TASK)
    )


def update_task(
    database: Database, owner: UUID, task_id: UUID, changes: Mapping[str, Any]
) -> TaskRow | None:
    """The owner's task with `changes` by column, or None if there is none. No change is one."""
    if not changes:
        return find_task(database, owner, task_id)
    row = database.one(owner, update_statement(*sorted(changes)), id=task_id, **changes)
    return TaskRow(*row) if row else None


DELETE = compiled(
    update(tasks)
    .where(*THE_TASK)
    .values(deleted_at=func.clock_timestamp())
    .returning(tasks.c.revision)
)


def delete_task(database: Database, owner: UUID, task_id: UUID) -> bool:
    """Whether there was such a task to put into the trash."""
    return database.one(owner, DELETE, id=task_id) is not None
