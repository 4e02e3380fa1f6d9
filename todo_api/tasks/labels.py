"""Statements on the labels of tasks.

A task has its labels sorted by code point (`labels`), and in the same order the labels after
case-folding (`label_keys`), which the application computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import (
    Integer,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from todo_api.db.statement import OWNER, compiled
from todo_api.resources.items import change
from todo_api.resources.pages import CLIENT_IS_OUTDATED, ROWS, owner_row
from todo_api.resources.statements import locked_ids
from todo_api.tasks.fields import LABELS, TASK, label_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, FromClause

    from todo_api.db.database import Database
    from todo_api.db.statement import Statement
    from todo_api.resources.items import ChangeResult, Item
    from todo_api.web.conditional import Precondition

columns = TASK.table.c
is_live = TASK.statements.is_live

LABEL = bindparam("label", type_=Text)
KEY = bindparam("label_key", type_=Text)
TO_LABEL = bindparam("to_label", type_=Text)
TO_KEY = bindparam("to_key", type_=Text)
MAXIMUM: ColumnElement[int] = literal_column(str(LABELS.maximum), Integer)


def build_label_arrays(
    label: ColumnElement[str], key: ColumnElement[str], condition: Any = None
) -> dict[str, ColumnElement[Any]]:
    """Return the new values of both arrays: with one more label, without duplicates, sorted.

    `condition` returns the condition for labels that stay. Its argument is a row with the columns
    `label` and `key`.
    """
    each: FromClause = (
        func.unnest(
            func.array_append(columns.labels, label), func.array_append(columns.label_keys, key)
        )
        .table_valued("label", "key", name="each")
        .render_derived()
    )
    row = each.c
    kept = select(row.label, row.key).group_by(row.label, row.key)
    if condition is not None:
        kept = kept.where(condition(row))
    rows = kept.correlate(TASK.table).subquery("kept")

    def array(column: ColumnElement[str]) -> ColumnElement[Any]:
        ordered = select(column).order_by(rows.c.label.collate("C"))
        return func.array(ordered.scalar_subquery(), type_=ARRAY(Text))

    return {"labels": array(rows.c.label), "label_keys": array(rows.c.key)}


has_label = any_(columns.labels) == LABEL

ADD = TASK.statements.change_row(
    build_label_arrays(LABEL, KEY),
    and_(is_live, ~(any_(columns.label_keys) == KEY), func.cardinality(columns.labels) < MAXIMUM),
    and_(is_live, has_label),
)
REMOVE = TASK.statements.change_row(
    {
        "labels": func.array_remove(columns.labels, LABEL),
        "label_keys": func.array_remove(columns.label_keys, KEY),
    },
    and_(is_live, has_label),
    and_(is_live, ~has_label),
)

# All tasks with the label are locked before the first of them is changed.
LOCKED = locked_ids(TASK.table, is_live, has_label)
# The new label replaces the old one, and all labels that are equal to it by case-folding. If it is
# NULL, the old label is removed.
RENAMED = (
    update(TASK.table)
    .where(
        columns.user_id == OWNER,
        columns.id == any_(func.array(select(LOCKED.c.id).scalar_subquery())),
        has_label,
        TO_LABEL.is_distinct_from(LABEL),
    )
    .values(
        build_label_arrays(
            TO_LABEL,
            TO_KEY,
            lambda row: or_(
                and_(row.label != LABEL, row.key.is_distinct_from(TO_KEY)), row.label == TO_LABEL
            ),
        )
    )
    .returning(columns.id)
    .cte("renamed")
)
RENAME = compiled(select(func.count()).select_from(RENAMED))


class LabelError(Exception):
    """The task cannot get the label. The message is the detail of the error."""


class LabelCount(NamedTuple):
    """A label, and the number of live tasks that have it."""

    name: str
    tasks: int


class LabelPage(NamedTuple):
    """The owner's revision, the labels, and whether there are more."""

    revision: int
    labels: list[LabelCount]
    more: bool


def labels_statement(*, after: bool = False) -> Statement:
    """Return a statement for the owner's revision and a page of the labels, in one snapshot."""
    each = (
        select(func.unnest(columns.labels, type_=Text).label("name"))
        .where(columns.user_id == OWNER, is_live, CLIENT_IS_OUTDATED)
        .subquery("each")
    )
    page = (
        select(each.c.name, func.count().label("number"))
        .group_by(each.c.name)
        .order_by(each.c.name.collate("C"))
        .limit(ROWS)
    )
    if after:
        page = page.where(each.c.name.collate("C") > bindparam("after_label", type_=Text))
    first = select(cast(null(), Text).label("name"), owner_row.c.revision.label("number"))
    return compiled(union_all(first, select(*page.subquery("page").c)))


LIST, LIST_AFTER = labels_statement(), labels_statement(after=True)


def list_labels(
    database: Database,
    owner: UUID,
    limit: int,
    after: str | None = None,
    client_revisions: Sequence[int] = (),
) -> LabelPage:
    """Return at most `limit` labels of live tasks, in the order of their code points.

    `client_revisions` are the revisions in the client's If-None-Match: if the owner's revision is
    one of them, the labels are not read.
    """
    parameters = {"rows": limit + 1, "client_revisions": list(client_revisions)}
    if after is None:
        rows = database.all(owner, LIST, **parameters)
    else:
        rows = database.all(owner, LIST_AFTER, **parameters, after_label=after)
    revision = next((number for name, number in rows if name is None), 0)
    labels = [LabelCount(name, number) for name, number in rows if name is not None]
    return LabelPage(revision, labels[:limit], len(labels) > limit)


def rename_label(database: Database, owner: UUID, label: str, to_label: str | None) -> int:
    """Replace the label in all live tasks, or remove it; return the number of changed tasks."""
    parameters = {
        "label": label,
        "to_label": to_label,
        "to_key": None if to_label is None else label_key(to_label),
    }
    *_, rows = database.write(
        owner, [RENAME], parameters, retry=[RENAME, TASK.statements.count_of_attempt]
    )
    return int(rows[0][0])


def add_label(
    database: Database, owner: UUID, task_id: UUID, label: str, precondition: Precondition
) -> ChangeResult:
    """Add the label to the task, if the precondition holds.

    Raises LabelError if the task has an equal label in another case, or has too many labels.
    """
    parameters = label_parameters(task_id, label)

    def checked(item: Item | None) -> Mapping[str, Any]:
        if item is not None:
            labels = orjson.loads(item.json)["labels"]
            same = [other for other in labels if label_key(other) == label_key(label)]
            if same and same != [label]:
                raise LabelError(f"The task has the label {same[0]}, which differs only in case.")
            if not same and len(labels) >= LABELS.maximum:
                raise LabelError(f"The task has {LABELS.maximum} labels, which is the maximum.")
        return parameters

    return change(database, owner, ADD, precondition, checked)


def remove_label(
    database: Database, owner: UUID, task_id: UUID, label: str, precondition: Precondition
) -> ChangeResult:
    """Remove the label from the task, if the precondition holds."""
    parameters = label_parameters(task_id, label)
    return change(database, owner, REMOVE, precondition, lambda _: parameters)


def label_parameters(task_id: UUID, label: str) -> dict[str, Any]:
    return {"id": task_id, "label": label, "label_key": label_key(label)}
