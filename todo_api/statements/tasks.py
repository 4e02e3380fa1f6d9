"""What is done to one task: one function, the owner first, one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Text,
    Update,
    Uuid,
    any_,
    bindparam,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from uuid_utils.compat import uuid7

from todo_api.database import Database, Json, Statement, compiled
from todo_api.tables import DELETED, LIVE, TRASH_DAYS, tasks

OWNER = bindparam("owner", type_=Uuid)
ID = bindparam("id", type_=Uuid)

# What a statement may set, by column. NULL is a value too: absent is not in the statement at all.
VALUES = {
    "title": bindparam("title", type_=Text),
    "description": bindparam("description", type_=Text),
    "completed": bindparam("completed", type_=Boolean),
}


class TaskRow(NamedTuple):
    """A task: its JSON, as PostgreSQL wrote it, its revision, and whether it is in the trash."""

    json: Json
    revision: int
    id: UUID
    deleted: bool


@dataclass(frozen=True)
class Condition:
    """What the task's revision must be for a change to be done.

    One of `match`, or any if that is None; none of `none_match`; and with `none`, nothing will do.
    """

    match: Sequence[int] | None = None
    none_match: Sequence[int] = ()
    none: bool = False

    def holds(self, revision: int) -> bool:
        if self.none or revision in self.none_match:
            return False
        return self.match is None or revision in self.match


class Found(NamedTuple):
    """What became of a change: the task as it is now, if there is one, and whether it was done."""

    task: TaskRow | None
    done: bool


def utc(column: ColumnElement[Any]) -> ColumnElement[str]:
    """RFC 3339 in UTC, to the microsecond, whatever the server's time zone is."""
    return func.to_char(
        func.timezone(literal_column("'UTC'"), column),
        literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""),
    )


def json_object(**members: Any) -> ColumnElement[Json]:
    """A JSON object of these members, in their order, written by PostgreSQL."""
    parts: list[Any] = []
    for name, value in members.items():
        parts += [literal_column(f"'{name}'"), value]
    return func.json_build_object(*parts)


MEMBERS: dict[str, Any] = {
    "id": tasks.c.id,
    "user_id": tasks.c.user_id,
    "title": tasks.c.title,
    "description": tasks.c.description,
    "completed": tasks.c.completed,
    "created_at": utc(tasks.c.created_at),
    "updated_at": utc(tasks.c.updated_at),
    "revision": tasks.c.revision,
}
DELETED_AT: dict[str, Any] = {"deleted_at": utc(tasks.c.deleted_at)}
PURGE_AT: dict[str, Any] = {
    "purge_at": utc(tasks.c.deleted_at + literal_column(f"interval '{TRASH_DAYS} days'"))
}

task_json = json_object(**MEMBERS)
TASK = (task_json, tasks.c.revision, tasks.c.id, DELETED)

OWN = (tasks.c.user_id == OWNER, tasks.c.id == ID)

INSERT = compiled(insert(tasks).values(user_id=OWNER, id=ID, **VALUES).returning(*TASK))


def insert_task(database: Database, owner: UUID, values: Mapping[str, Any]) -> TaskRow:
    """The new task of `title`, `description` and `completed`, its id a UUIDv7."""
    row = database.one(owner, INSERT, id=uuid7(), **values)
    assert row is not None  # noqa: S101  INSERT ... RETURNING has a row or raises
    return TaskRow(*row)


FIND = compiled(select(*TASK).where(*OWN, LIVE))
FIND_EVEN_DELETED = compiled(select(*TASK).where(*OWN))


def find_task(database: Database, owner: UUID, task_id: UUID) -> TaskRow | None:
    """The owner's task, or None if there is none that the owner may see."""
    row = database.one(owner, FIND, id=task_id)
    return TaskRow(*row) if row else None


# Not ON CONFLICT DO NOTHING: the trigger would take a number for a row that is not inserted. Who
# loses a race for the id gets a unique violation, and the statement is run once more.
INSERT_NAMED = compiled(
    insert(tasks)
    .from_select(
        ["user_id", "id", *VALUES],
        select(OWNER, ID, *VALUES.values()).where(~exists().where(*OWN)),
    )
    .returning(*TASK)
)


def insert_named_task(
    database: Database, owner: UUID, task_id: UUID, values: Mapping[str, Any]
) -> Found:
    """The new task of this id; not done if there is one already, be it in the trash."""
    inserted, there = database.run(
        owner, [INSERT_NAMED, FIND_EVEN_DELETED], {"id": task_id, **values}
    )
    return Found(TaskRow(*there[0]), bool(inserted))


REVISION_HOLDS = (
    or_(
        bindparam("match", type_=ARRAY(BigInteger)).is_(None),
        tasks.c.revision == any_(bindparam("match", type_=ARRAY(BigInteger))),
    ),
    ~(tasks.c.revision == any_(bindparam("none_match", type_=ARRAY(BigInteger)))),
)


@cache
def update_statement(*columns: str, conditional: bool = False) -> Statement:
    """The task with these columns set; the trigger leaves it alone where nothing differs."""
    change = update(tasks).where(*OWN, LIVE).values({name: VALUES[name] for name in columns})
    return returning(change, conditional=conditional)


@cache
def delete_statement(*, conditional: bool = False) -> Statement:
    change = update(tasks).where(*OWN, LIVE).values(deleted_at=func.clock_timestamp())
    return returning(change, conditional=conditional)


@cache
def restore_statement(*, conditional: bool = False) -> Statement:
    change = update(tasks).where(*OWN, DELETED).values(deleted_at=null())
    return returning(change, conditional=conditional)


def returning(change: Update, *, conditional: bool) -> Statement:
    return compiled((change.where(*REVISION_HOLDS) if conditional else change).returning(*TASK))


def update_task(
    database: Database,
    owner: UUID,
    task_id: UUID,
    changes: Mapping[str, Any],
    condition: Condition | None = None,
) -> Found:
    """The owner's task with `changes` by column, if its revision is what the condition says."""
    if not changes:
        task = find_task(database, owner, task_id)
        return Found(task, task is not None and (condition or Condition()).holds(task.revision))
    statement = update_statement(*sorted(changes), conditional=condition is not None)
    return change(database, owner, task_id, statement, FIND, condition, changes)


def delete_task(
    database: Database, owner: UUID, task_id: UUID, condition: Condition | None = None
) -> Found:
    """The owner's task, put into the trash, if its revision is what the condition says."""
    statement = delete_statement(conditional=condition is not None)
    return change(database, owner, task_id, statement, FIND, condition)


def restore_task(
    database: Database, owner: UUID, task_id: UUID, condition: Condition | None = None
) -> Found:
    """The owner's task, taken out of the trash; not done if it is not in there."""
    statement = restore_statement(conditional=condition is not None)
    return change(database, owner, task_id, statement, FIND_EVEN_DELETED, condition or Condition())


def change(
    database: Database,
    owner: UUID,
    task_id: UUID,
    statement: Statement,
    find: Statement,
    condition: Condition | None,
    values: Mapping[str, Any] | None = None,
) -> Found:
    """Run the change and, where it may fail to hold, read the task as it is then.

    The check is the change's own: between the two, nobody else can have written.
    """
    parameters: dict[str, Any] = {"id": task_id, **(values or {})}
    if condition is None:
        row = database.one(owner, statement, **parameters)
        return Found(TaskRow(*row) if row else None, row is not None)
    match = [] if condition.none else condition.match
    parameters["match"] = None if match is None else list(match)
    parameters["none_match"] = list(condition.none_match)
    changed, there = database.run(owner, [statement, find], parameters)
    if changed:
        return Found(TaskRow(*changed[0]), done=True)
    return Found(TaskRow(*there[0]) if there else None, done=False)
