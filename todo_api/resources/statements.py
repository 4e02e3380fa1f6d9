"""The statements on one row of a resource: each is compiled once, and runs in one round trip."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Double,
    LargeBinary,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import ID, OWNER, compiled
from todo_api.db.tables import TRASH_DAYS, idempotency_keys, users
from todo_api.resources.representation import json_moment, rendered_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from todo_api.db.statement import Statement


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

# The statements of the most recent combinations of fields are kept: there are 2^fields of them.
UPDATE_STATEMENTS = 64


class ConditionalChange(NamedTuple):
    """A change of one row, and the statement that reads the row as it is afterwards.

    Both are sent in one transaction. A second statement has a new snapshot: if the change waited
    for another writer, the second statement sees that writer's row, which a UNION ALL would not.
    """

    change: Statement
    find_outcome: Statement


class Statements:
    """The statements on the rows of one table; `fields` are the columns that clients write."""

    def __init__(self, table: Table, fields: Sequence[str]) -> None:
        columns = table.c
        self.is_live = columns.deleted_at.is_(None)
        self.is_deleted = columns.deleted_at.is_not(None)
        trash_time: ColumnElement[timedelta] = literal_column(f"interval '{TRASH_DAYS} days'")
        self.deleted_at = json_moment(columns.deleted_at)
        self.purge_at = json_moment(columns.deleted_at + trash_time)
        rendered = literal_column(rendered_row(table, fields, table.name), Text)
        self.json: ColumnElement[str] = func.coalesce(columns.json, rendered)

        self._table = table
        self._fields = tuple(fields)
        self._item = (self.json, columns.revision, columns.id, self.is_deleted)
        self._own = own = (columns.user_id == OWNER, columns.id == ID)

        self.find = compiled(select(*self._item).where(*own, self.is_live))

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
        self._written_by_this_attempt = columns.attempt == bindparam(
            "attempt", type_=columns.attempt.type
        )
        self._changed_since = (columns.updated_at > func.now() - ELAPSED - MARGIN).is_(True)

        written = [columns[name] for name in fields]
        values = select(OWNER, ID, *map(new_value, written))
        names = ["user_id", "id", *fields]
        has_new_values = and_(self.is_live, ~self._differs(fields))
        # Not ON CONFLICT DO NOTHING: the trigger would take a revision for a row that is not
        # inserted. The losing insert fails with unique_violation and is retried.
        absent = values.where(~exists().where(*own))
        self.insert = ConditionalChange(
            compiled(insert(table).from_select(names, absent).returning(*self._item)),
            self._find_outcome(has_new_values),
        )

        # The key's response is stored if the row is inserted, and if it was inserted already.
        is_first = ~exists().where(*SAME_KEY)
        new = insert(table).from_select(names, absent.where(is_first))
        result = (self.json.label("body"), columns.id, columns.revision)
        inserted = new.returning(*result).cte("new")
        repeated = select(*result).where(*own, has_new_values, is_first)
        self.insert_once = compiled(
            keep_response(union_all(select(*inserted.c), repeated).subquery("created"))
        )

        self.delete = self._change({"deleted_at": func.clock_timestamp()}, self.is_live)
        self.restore = self._change({"deleted_at": null()}, self.is_deleted)
        trash = (
            select(columns.id, columns.revision)
            .where(columns.user_id == OWNER, self.is_deleted)
            .order_by(columns.id)
            .with_for_update()
            .cte("trash")
        )
        self.empty_trash = compiled(remove_for_good(table, trash))

    @lru_cache(maxsize=UPDATE_STATEMENTS)  # noqa: B019  a resource lives as long as the process
    def update(self, fields: tuple[str, ...]) -> ConditionalChange:
        """Return the change of these fields of a live row."""
        differs = self._differs(fields)
        values = {name: new_value(self._table.c[name]) for name in fields}
        return self._change(values, and_(self.is_live, differs), and_(self.is_live, ~differs))

    def _differs(self, fields: Sequence[str]) -> ColumnElement[bool]:
        columns = [self._table.c[name] for name in fields]
        return or_(*(column.is_distinct_from(new_value(column)) for column in columns))

    def _change(
        self,
        values: Mapping[str, Any],
        state: ColumnElement[bool],
        wanted: ColumnElement[bool] | None = None,
    ) -> ConditionalChange:
        """Return the change of a row in this state; in the `wanted` state it is superfluous."""
        revision = self._table.c.revision
        conditions = (
            *self._own,
            state,
            or_(self._written_by_this_attempt, ~self._changed_since),
            or_(MATCH.is_(None), revision == any_(MATCH)),
            ~(revision == any_(NONE_MATCH)),
        )
        change = update(self._table).where(*conditions).values(values)
        return ConditionalChange(
            compiled(change.returning(*self._item)),
            self._find_outcome(~state if wanted is None else wanted),
        )

    def _find_outcome(self, wanted: ColumnElement[bool]) -> Statement:
        """Return the row, whether it is in the wanted state, and what repeated writes ask for."""
        asked = (wanted, self._written_by_this_attempt, self._changed_since)
        return compiled(select(*self._item, *asked).where(*self._own))


def remove_for_good(table: Table, rows: Any) -> Any:
    """Return the removal of the owner's deleted rows, noted for clients that still have them."""
    removal = (
        delete(table)
        .where(table.c.user_id == OWNER, table.c.id == rows.c.id)
        .returning(table.c.revision)
        .cte("removal")
    )
    latest = select(func.max(removal.c.revision)).scalar_subquery()
    return (
        update(users)
        .where(users.c.id == OWNER, latest.is_not(None))
        .values(purged_revision=func.greatest(users.c.purged_revision, latest))
        .returning(users.c.purged_revision)
    )


def keep_response(created: Any) -> Any:
    """Return the insert of the response to a creation, for requests with the same key."""
    tag = QUOTE + cast(created.c.revision, Text) + QUOTE
    return (
        insert(idempotency_keys)
        .from_select(
            ["user_id", "key", "fingerprint", "status", "headers", "body", "revision"],
            select(
                OWNER,
                KEY,
                bindparam("fingerprint", type_=LargeBinary),
                bindparam("status", type_=BigInteger),
                func.json_build_object(
                    *(literal_column("'Location'"), bindparam("location", type_=Text)),
                    *(literal_column("'ETag'"), tag),
                ),
                cast(created.c.body, JSON),
                created.c.revision,
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
        # For the ETag, which the version before this one wrote with a prefix.
        idempotency_keys.c.revision,
    ).where(*SAME_KEY)
)
