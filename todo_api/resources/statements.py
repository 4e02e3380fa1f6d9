"""The statements on one row of a resource: each is compiled once, and runs in one round trip."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Double,
    LargeBinary,
    Table,
    Text,
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
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import ID, OWNER, compiled
from todo_api.db.tables import TRASH_DAYS, idempotency_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from todo_api.db.statement import Statement


def utc(column: ColumnElement[Any]) -> ColumnElement[str]:
    """Return RFC 3339 in UTC, to the microsecond, whatever the server's time zone is."""
    return func.to_char(
        func.timezone(literal_column("'UTC'"), column),
        literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""),
    )


def json_object(members: Mapping[str, Any]) -> ColumnElement[Any]:
    """Return a JSON object of these members, in their order, written by PostgreSQL."""
    parts: list[Any] = []
    for name, value in members.items():
        parts += [literal_column(f"'{name}'"), value]
    return func.json_build_object(*parts)


def new_value(column: Column[Any]) -> ColumnElement[Any]:
    """Return the parameter that an INSERT or UPDATE writes into the column."""
    return bindparam(f"new_{column.name}", type_=column.type)


# Durations are compared, not clocks: the application's and the database's may differ. The margin is
# for what one message may be on its way longer than another.
ELAPSED = cast(bindparam("elapsed"), Double) * literal_column("interval '1 second'")
MARGIN: ColumnElement[timedelta] = literal_column("interval '100 milliseconds'")

MATCH = bindparam("match", type_=ARRAY(BigInteger))
NONE_MATCH = bindparam("none_match", type_=ARRAY(BigInteger))

QUOTE: ColumnElement[str] = literal_column("'\"'")

KEY = bindparam("key", type_=Text)
SAME_KEY = (idempotency_keys.c.user_id == OWNER, idempotency_keys.c.key == KEY)


# Of the most recent combinations of fields, the statements are kept: there are 2^fields of them.
UPDATE_STATEMENTS = 64


class Statements:
    """The statements on the rows of one table; `fields` are the columns that clients write."""

    def __init__(self, table: Table, fields: Sequence[str]) -> None:
        columns = table.c
        written = [columns[name] for name in fields]
        self.is_live = columns.deleted_at.is_(None)
        self.is_deleted = columns.deleted_at.is_not(None)
        self.members: dict[str, Any] = {
            "id": columns.id,
            "user_id": columns.user_id,
            **{name: columns[name] for name in fields},
            "created_at": utc(columns.created_at),
            "updated_at": utc(columns.updated_at),
            "revision": columns.revision,
        }
        self.deleted_at: dict[str, Any] = {"deleted_at": utc(columns.deleted_at)}
        trash_time: ColumnElement[timedelta] = literal_column(f"interval '{TRASH_DAYS} days'")
        self.purge_at: dict[str, Any] = {"purge_at": utc(columns.deleted_at + trash_time)}
        self.json = json_object(self.members)

        item = (self.json, columns.revision, columns.id, self.is_deleted)
        own = (columns.user_id == OWNER, columns.id == ID)
        self.find = compiled(select(*item).where(*own, self.is_live))
        self.find_even_deleted = compiled(select(*item).where(*own))

        self.lock_all = compiled(
            select(func.count()).select_from(
                select(columns.id)
                .where(columns.user_id == OWNER)
                .order_by(columns.id)
                .with_for_update()
                .subquery()
            )
        )

        # A write that is repeated must find out whether its first attempt was the latest change of
        # the row, and whether anything has changed the row since that attempt began.
        written_by_this_attempt = columns.attempt == bindparam(
            "attempt", type_=columns.attempt.type
        )
        changed_since = (columns.updated_at > func.now() - ELAPSED - MARGIN).is_(True)
        safe_to_apply = or_(written_by_this_attempt, ~changed_since)
        self.find_attempt = compiled(
            select(*item, written_by_this_attempt, changed_since).where(*own)
        )

        values = select(OWNER, ID, *map(new_value, written))
        names = ["user_id", "id", *fields]
        # Not ON CONFLICT DO NOTHING: the trigger would take a revision for a row that is not
        # inserted. The losing insert fails with unique_violation and is retried.
        absent = values.where(~exists().where(*own))
        self.insert = compiled(insert(table).from_select(names, absent).returning(*item))

        without_response = values.where(~exists().where(*SAME_KEY))
        new = insert(table).from_select(names, without_response)
        returned = new.returning(self.json.label("body"), columns.id, columns.revision).cte("new")
        self.insert_once = compiled(keep_response(returned))

        self._table = table
        self._own = own
        self._item = item
        self._safe_to_apply = safe_to_apply

    @lru_cache(maxsize=UPDATE_STATEMENTS)  # noqa: B019  a resource lives as long as the process
    def update(self, fields: tuple[str, ...], *, conditional: bool) -> Statement:
        """Return the change of these fields; the trigger ignores rows where nothing differs."""
        values = {name: new_value(self._table.c[name]) for name in fields}
        return self._change(values, self.is_live, conditional=conditional)

    @lru_cache(maxsize=2)  # noqa: B019
    def delete(self, *, conditional: bool) -> Statement:
        """Return the change that puts a row into the trash."""
        values = {"deleted_at": func.clock_timestamp()}
        return self._change(values, self.is_live, conditional=conditional)

    @lru_cache(maxsize=2)  # noqa: B019
    def restore(self, *, conditional: bool) -> Statement:
        """Return the change that takes a row out of the trash."""
        values = {"deleted_at": null()}
        return self._change(values, self.is_deleted, conditional=conditional)

    def _change(
        self, values: Mapping[str, Any], state: ColumnElement[bool], *, conditional: bool
    ) -> Statement:
        revision = self._table.c.revision
        holds = (
            or_(MATCH.is_(None), revision == any_(MATCH)),
            ~(revision == any_(NONE_MATCH)),
        )
        conditions = (*self._own, state, self._safe_to_apply, *(holds if conditional else ()))
        change = update(self._table).where(*conditions).values(values)
        return compiled(change.returning(*self._item))


def keep_response(new: Any) -> Any:
    """Return the insert of the response to a creation, for requests with the same key."""
    tag = bindparam("etag_prefix", type_=Text) + cast(new.c.revision, Text) + QUOTE
    return (
        insert(idempotency_keys)
        .from_select(
            ["user_id", "key", "fingerprint", "status", "headers", "body", "task_id", "revision"],
            select(
                OWNER,
                KEY,
                bindparam("fingerprint", type_=LargeBinary),
                bindparam("status", type_=BigInteger),
                json_object({"Location": bindparam("location", type_=Text), "ETag": tag}),
                new.c.body,
                # For the version before this one, which may run beside it.
                new.c.id,
                new.c.revision,
            ),
        )
        .returning(idempotency_keys.c.key)
    )


FIND_RESPONSE = compiled(
    select(
        idempotency_keys.c.fingerprint,
        idempotency_keys.c.status,
        cast(idempotency_keys.c.headers, JSON),
        cast(idempotency_keys.c.body, JSON),
        # Of a row that the version before this one wrote.
        idempotency_keys.c.task_id,
        idempotency_keys.c.revision,
    ).where(*SAME_KEY)
)
