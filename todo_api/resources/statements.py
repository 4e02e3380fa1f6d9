"""The statements on one row of a resource, each compiled once."""

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
    Uuid,
    and_,
    any_,
    bindparam,
    case,
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
from todo_api.resources.representation import as_bytes, json_timestamp
from todo_api.resources.row_function import json_function_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from sqlalchemy import Subquery

    from todo_api.db.statement import Statement
    from todo_api.resources.resource import Resource


def new_value(column: Column[Any]) -> ColumnElement[Any]:
    """Return the parameter that an INSERT writes into the column."""
    return bindparam(f"new_{column.name}", type_=column.type)


# To see whether a row changed since the first run began, a retry compares two durations: the age of
# the row's latest change, by PostgreSQL's clock, and the time since the first run began, by the
# application's clock. It compares no times, because the clocks may differ. The margin is for the
# network: the messages of the two runs may have different delays.
ELAPSED = cast(bindparam("elapsed"), Double) * literal_column("interval '1 second'")
MARGIN: ColumnElement[timedelta] = literal_column("interval '100 milliseconds'")

MATCH = bindparam("match", type_=ARRAY(BigInteger))
NONE_MATCH = bindparam("none_match", type_=ARRAY(BigInteger))

ATTEMPT = bindparam("attempt", type_=Uuid)

QUOTE: ColumnElement[str] = literal_column("'\"'")

KEY = bindparam("key", type_=Text)
SAME_KEY = (idempotency_keys.c.user_id == OWNER, idempotency_keys.c.key == KEY)

# The size of the cache of UPDATE statements: there are 2^fields combinations of fields.
UPDATE_STATEMENTS = 64


class ConditionalChange(NamedTuple):
    """A change of one row, and a statement that reads the row afterwards, in one transaction.

    The second statement has a new snapshot: if the change waited for another writer, the second
    statement sees the row that this writer committed. A UNION ALL would not.

    If the change has consequences for other rows, `locks` lock all these rows before the change,
    and `follow_ups` change them afterwards.
    """

    change: Statement
    find_outcome: Statement
    locks: tuple[Statement, ...] = ()
    follow_ups: tuple[Statement, ...] = ()

    @property
    def statements(self) -> tuple[Statement, ...]:
        """All statements, in the order in which they run."""
        return (*self.locks, self.change, *self.follow_ups, self.find_outcome)


def precondition_holds(revision: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return whether the precondition of the request holds at this revision."""
    return and_(or_(MATCH.is_(None), revision == any_(MATCH)), ~(revision == any_(NONE_MATCH)))


# The statements after this lock see everything that other requests of the owner have committed.
LOCK_OWNER = compiled(select(users.c.id).where(users.c.id == OWNER).with_for_update(key_share=True))


def locked_ids(table: Table, *conditions: ColumnElement[bool], nowait: bool = False) -> Subquery:
    """Return a subquery that locks the owner's rows in order of id; its column is `id`."""
    rows = select(table.c.id).where(table.c.user_id == OWNER, *conditions).order_by(table.c.id)
    return rows.with_for_update(key_share=True, nowait=nowait).subquery("locked")


def lock_rows(table: Table, *conditions: ColumnElement[bool], nowait: bool = False) -> Statement:
    """Return a statement that locks the rows in order of id. Several rows are locked like this.

    With `nowait`, it fails with lock_not_available if another transaction has locked one of them;
    the whole transaction is then retried. This is for rows that other requests have inserted since
    the first locks: the owner's row is locked by now, so waiting could end in a deadlock.
    """
    locked = locked_ids(table, *conditions, nowait=nowait)
    return compiled(select(func.count()).select_from(locked))


class Statements:
    """The statements on one row of a resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._table = table = resource.table
        columns = table.c
        self.is_live = columns.deleted_at.is_(None)
        self.is_deleted = columns.deleted_at.is_not(None)
        trash_time: ColumnElement[timedelta] = literal_column(f"interval '{TRASH_DAYS} days'")
        self.deleted_at = json_timestamp(columns.deleted_at)
        self.purge_at = json_timestamp(columns.deleted_at + trash_time)
        render = getattr(func, json_function_name(table.name))
        rendered = render(columns.user_id, columns.id, type_=Text)
        self.json: ColumnElement[str] = func.coalesce(columns.json, rendered)

        self._item = (as_bytes(self.json), columns.revision, columns.id, self.is_deleted)
        self.is_this_row = is_this_row = (columns.user_id == OWNER, columns.id == ID)

        self.find = compiled(select(*self._item).where(*is_this_row, self.is_live))

        self.lock_all = compiled(
            select(func.count()).select_from(
                select(columns.id)
                .where(columns.user_id == OWNER)
                .order_by(columns.id)
                .with_for_update()
                .subquery()
            )
        )

        # A retry must detect whether the first run made the latest change of the row, and whether
        # anything has changed the row since the first run began.
        self._written_by_this_attempt = columns.attempt == ATTEMPT
        self._changed_since = (columns.updated_at > func.now() - ELAPSED - MARGIN).is_(True)

        self.count_of_attempt = compiled(
            select(func.count()).where(columns.user_id == OWNER, self._written_by_this_attempt)
        )

        names = ["user_id", "id", *resource.written_columns]
        values = select(OWNER, ID, *(new_value(columns[name]) for name in names[2:]))
        has_new_values = and_(self.is_live, ~self._differs(resource.writable_names))
        # Not ON CONFLICT DO NOTHING: the trigger would use up a revision without an insert. Of two
        # simultaneous inserts, the second fails with unique_violation and is retried.
        values_if_absent = values.where(~exists().where(*is_this_row))
        self.insert = ConditionalChange(
            compiled(insert(table).from_select(names, values_if_absent).returning(*self._item)),
            self._find_outcome(has_new_values),
        )

        # The response is stored in both cases: this statement inserts the row, or a row with these
        # values already exists.
        is_first = ~exists().where(*SAME_KEY)
        new = insert(table).from_select(names, values_if_absent.where(is_first))
        result = (self.json.label("body"), columns.id, columns.revision)
        inserted = new.returning(*result).cte("new")
        repeated = select(*result).where(*is_this_row, has_new_values, is_first)
        self.insert_once = compiled(
            insert_response(union_all(select(*inserted.c), repeated).subquery("created"))
        )

        self.delete = self.change_row({"deleted_at": func.clock_timestamp()}, self.is_live)
        # Not IS NOT NULL, with which PostgreSQL would read the whole trash from its index.
        self.restore = self.change_row({"deleted_at": null()}, self.is_live.is_(False))
        self.lock_trash = lock_rows(table, self.is_deleted)
        # Rows that were deleted since `lock_trash`, as in `lock_rows`.
        trash = (
            select(columns.id, columns.revision)
            .where(columns.user_id == OWNER, self.is_deleted)
            .order_by(columns.id)
            .with_for_update(nowait=True)
            .cte("trash")
        )
        self.empty_trash = compiled(delete_for_good(table, trash))

    @lru_cache(maxsize=UPDATE_STATEMENTS)  # noqa: B019  a resource exists as long as the process
    def update(self, fields: tuple[str, ...]) -> ConditionalChange:
        """Return the statements that change these fields of a live row.

        If a computed column depends on these fields and on others, the row changes only if the
        others have the values in the parameters `stored_...`, or if the column becomes NULL.
        """
        differs = self._differs(fields)
        values = self._new_values(fields)
        merged = {**self._table.c, **values}
        state = [self.is_live, differs]
        for column in self._resource.computed:
            others = [name for name in column.sources if name not in fields]
            if len(others) == len(column.sources):
                continue
            values[column.name] = new_value(self._table.c[column.name])
            if others:
                is_null = or_(*(merged[name].is_(None) for name in column.sources))
                is_stored = (self._has_stored_value(name) for name in others)
                state.append(or_(is_null, and_(*is_stored)))
                # The parameter may come from values that another request has set to NULL since.
                values[column.name] = case((~is_null, values[column.name]))
        values |= self.implied_values(fields)
        return self.change_row(values, and_(*state), and_(self.is_live, ~differs))

    def implied_values(self, fields: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002
        """Return what an UPDATE of these fields writes into columns that the request omits."""
        return {}

    def _new_values(self, fields: Sequence[str]) -> dict[str, ColumnElement[Any]]:
        """Return the value that an UPDATE of these fields writes into each of their columns."""
        columns, declared = self._table.c, self._resource.by_name
        sent = {name: declared[name].type.new_value(columns[name]) for name in fields}
        merged = {**columns, **sent}
        return {
            name: adjust(columns[name], value, merged)
            if (adjust := declared[name].adjust)
            else value
            for name, value in sent.items()
        }

    def _has_stored_value(self, name: str) -> ColumnElement[bool]:
        column: ColumnElement[Any] = self._table.c[name]
        return column.is_not_distinct_from(bindparam(f"stored_{name}", type_=column.type))

    def _differs(self, fields: Sequence[str]) -> ColumnElement[bool]:
        columns = self._table.c
        new_values = self._new_values(fields).items()
        return or_(*(columns[name].is_distinct_from(value) for name, value in new_values))

    def change_row(
        self,
        values: Mapping[str, Any],
        state: ColumnElement[bool],
        wanted: ColumnElement[bool] | None = None,
    ) -> ConditionalChange:
        """Return the statements that change a row which is in `state`.

        A row in the state `wanted` (by default, any row not in `state`) is as requested already.
        """
        revision = self._table.c.revision
        conditions = (
            *self.is_this_row,
            state,
            or_(self._written_by_this_attempt, ~self._changed_since),
            precondition_holds(revision),
        )
        change = update(self._table).where(*conditions).values(values)
        return ConditionalChange(
            compiled(change.returning(*self._item)),
            self._find_outcome(~state if wanted is None else wanted),
        )

    def _find_outcome(self, wanted: ColumnElement[bool]) -> Statement:
        """Return a statement for the row and three flags, which `items.py` evaluates.

        The flags: the row is in the wanted state; this write attempt made its latest change;
        something has changed it since the first run began.
        """
        flags = (wanted, self._written_by_this_attempt, self._changed_since)
        return compiled(select(*self._item, *flags).where(*self.is_this_row))


def delete_for_good(table: Table, rows: Any) -> Any:
    """Return a statement that deletes the owner's `rows` and raises `purged_revision`.

    Clients that have not yet seen these deletions then start a full sync.

    The UPDATE writes `revision`, too, but never changes its value. This is necessary if the
    statement waits for another request that changes a row and takes a new revision. PostgreSQL then
    computes the UPDATE twice: first from the owner's row as it was before the wait, then from the
    current row. Without the write, the first result would have the old `revision`, and would
    violate the constraint `purged_revision BETWEEN 0 AND revision`.
    """
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
        .values(
            revision=func.greatest(users.c.revision, latest),
            purged_revision=func.greatest(users.c.purged_revision, latest),
        )
        .returning(users.c.purged_revision)
    )


def insert_response(created: Any) -> Any:
    """Return the INSERT of the response for the row in `created`, under the idempotency key."""
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
        # The ETag is made from the revision: the previous release stored ETags with a prefix.
        idempotency_keys.c.revision,
    ).where(*SAME_KEY)
)
