"""What is done to one task: one function, the owner first, one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    LargeBinary,
    Text,
    Update,
    Uuid,
    any_,
    bindparam,
    cast,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from uuid_utils.compat import uuid7

from todo_api.database import Database, OutcomeUnknownError, compiled
from todo_api.tables import DELETED, LIVE, TRASH_DAYS, idempotency_keys, tasks

if TYPE_CHECKING:
    from todo_api.connection import Json, Row, Statement

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

FIND = compiled(select(*TASK).where(*OWN, LIVE))
FIND_EVEN_DELETED = compiled(select(*TASK).where(*OWN))


def find_task(database: Database, owner: UUID, task_id: UUID) -> TaskRow | None:
    """The owner's task, or None if there is none that the owner may see."""
    row = database.one(owner, FIND, id=task_id)
    return TaskRow(*row) if row else None


# What a change that is repeated, because the answer to its first attempt was lost, has to know of a
# task: whether that attempt was the last to change it; and whether it has been changed since the
# attempt began, perhaps after it, by another device. Clocks are read for a duration only, and never
# compared; MARGIN is for what one message may be on its way longer than another.
MINE = tasks.c.attempt == bindparam("attempt", type_=Uuid)
ELAPSED = cast(bindparam("elapsed"), Double) * literal_column("interval '1 second'")
MARGIN: ColumnElement[timedelta] = literal_column("interval '100 milliseconds'")
CHANGED_SINCE = (tasks.c.updated_at > func.now() - ELAPSED - MARGIN).is_(true())
UNDISTURBED = or_(MINE, ~CHANGED_SINCE)
RECOGNISE = compiled(select(*TASK, MINE, CHANGED_SINCE).where(*OWN))


def recognised(rows: Sequence[Row], *, even_deleted: bool = False) -> Found:
    """What RECOGNISE has to tell of a change that did nothing when it was run, just now.

    Raises OutcomeUnknownError where the first attempt may have been made, and been overwritten.
    """
    if not rows:
        return Found(None, done=False)
    *columns, mine, changed_since = rows[0]
    task = TaskRow(*columns)
    if mine:
        return Found(task, done=True)
    if changed_since:
        raise OutcomeUnknownError
    return Found(task if even_deleted or not task.deleted else None, done=False)


# Not ON CONFLICT DO NOTHING: the trigger would take a number for a row that is not inserted. Who
# loses a race for the id gets a unique violation, and is repeated.
INSERT = compiled(
    insert(tasks)
    .from_select(
        ["user_id", "id", *VALUES],
        select(OWNER, ID, *VALUES.values()).where(~exists().where(*OWN)),
    )
    .returning(*TASK)
)


def insert_task(database: Database, owner: UUID, values: Mapping[str, Any]) -> TaskRow:
    """The new task of `title`, `description` and `completed`, its id a UUIDv7."""
    parameters = {"id": uuid7(), **values}
    inserted, *there = database.write(
        owner, [INSERT], parameters, again=[INSERT, FIND_EVEN_DELETED]
    )
    # The id is new: what is there already, the first attempt has made.
    return TaskRow(*(inserted or there[0])[0])


def insert_named_task(
    database: Database, owner: UUID, task_id: UUID, values: Mapping[str, Any]
) -> Found:
    """The new task of this id; not done if there is one already, be it in the trash."""
    statements = [INSERT, RECOGNISE]
    parameters = {"id": task_id, **values}
    _, there = database.write(owner, statements, parameters, again=statements)
    return recognised(there, even_deleted=True)


ANSWERED = (
    idempotency_keys.c.user_id == OWNER,
    idempotency_keys.c.key == bindparam("key", type_=Text),
)
NEW = (
    insert(tasks)
    .from_select(
        ["user_id", "id", *VALUES],
        select(OWNER, ID, *VALUES.values()).where(~exists().where(*ANSWERED)),
    )
    .returning(task_json.label("body"), tasks.c.revision, tasks.c.id)
    .cte("new")
)
INSERT_ONCE = compiled(
    insert(idempotency_keys)
    .from_select(
        ["user_id", "key", "fingerprint", "task_id", "revision", "body"],
        select(
            OWNER,
            bindparam("key", type_=Text),
            bindparam("fingerprint", type_=LargeBinary),
            NEW.c.id,
            NEW.c.revision,
            NEW.c.body,
        ),
    )
    .returning(idempotency_keys.c.task_id)
)
FIND_ANSWER = compiled(
    select(
        idempotency_keys.c.fingerprint,
        cast(idempotency_keys.c.body, JSON),
        idempotency_keys.c.revision,
        idempotency_keys.c.task_id,
    ).where(*ANSWERED)
)


class Answered(NamedTuple):
    """A task as it was when it was made, and whether that was by an earlier request."""

    task: TaskRow
    replayed: bool


def insert_task_once(
    database: Database, owner: UUID, values: Mapping[str, Any], key: str, fingerprint: bytes
) -> Answered | None:
    """The task that the first request of this key made, or None if that was another request.

    The task and its answer are one statement's: there are both or none. Who loses a race for the
    key waits for the winner, gets a unique violation, and finds the answer when it is repeated.
    """
    task_id = uuid7()
    parameters = {"id": task_id, "key": key, "fingerprint": fingerprint, **values}
    statements = [INSERT_ONCE, FIND_ANSWER]
    _, ((first, body, revision, found_id),) = database.write(
        owner, statements, parameters, again=statements
    )
    if first != fingerprint:
        return None
    return Answered(TaskRow(body, revision, found_id, deleted=False), found_id != task_id)


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
    """The change, which leaves alone what another device did since it was first attempted."""
    holds = (UNDISTURBED, *(REVISION_HOLDS if conditional else ()))
    return compiled(change.where(*holds).returning(*TASK))


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
    return change(database, owner, task_id, statement, condition, changes)


def delete_task(
    database: Database, owner: UUID, task_id: UUID, condition: Condition | None = None
) -> Found:
    """The owner's task, put into the trash, if its revision is what the condition says."""
    statement = delete_statement(conditional=condition is not None)
    return change(database, owner, task_id, statement, condition)


def restore_task(
    database: Database, owner: UUID, task_id: UUID, condition: Condition | None = None
) -> Found:
    """The owner's task, taken out of the trash; not done if it is not in there."""
    statement = restore_statement(conditional=condition is not None)
    condition = condition or Condition()
    return change(database, owner, task_id, statement, condition, even_deleted=True)


def change(
    database: Database,
    owner: UUID,
    task_id: UUID,
    statement: Statement,
    condition: Condition | None,
    values: Mapping[str, Any] | None = None,
    *,
    even_deleted: bool = False,
) -> Found:
    """Run the change and, where it may fail to hold, read the task as it is then.

    The check is the change's own: between the two, nobody else can have written.
    """
    parameters: dict[str, Any] = {"id": task_id, **(values or {})}
    once = [statement]
    if condition is not None:
        match = [] if condition.none else condition.match
        parameters["match"] = None if match is None else list(match)
        parameters["none_match"] = list(condition.none_match)
        once.append(RECOGNISE)
    changed, *there = database.write(owner, once, parameters, again=[statement, RECOGNISE])
    if changed:
        return Found(TaskRow(*changed[0]), done=True)
    return recognised(there[0], even_deleted=even_deleted) if there else Found(None, done=False)
