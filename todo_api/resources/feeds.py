"""Feeds: rows of all resources of an owner in one order, such as the changes and the trash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, union_all

from todo_api.resources.pages import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Select

    from todo_api.resources.resource import Resource


def merged(
    resources: Sequence[Resource],
    branch: Callable[[Resource], Select[Any]],
    order: Sequence[str],
    *,
    descending: bool = False,
) -> Select[Any]:
    """Return the first rows of each resource's branch, in the order of these columns.

    Each branch has an order and a limit of its own, so PostgreSQL reads no more than a page of it.
    """

    def sorted_by(columns: Any) -> list[ColumnElement[Any]]:
        return [columns[name].desc() if descending else columns[name] for name in order]

    pages = [
        page.order_by(*sorted_by(page.selected_columns)).limit(ROWS)
        for page in map(branch, resources)
    ]
    if len(pages) == 1:
        return pages[0]
    rows = union_all(*(select(*page.subquery().c) for page in pages)).subquery("feed")
    return select(*rows.c).order_by(*sorted_by(rows.c)).limit(ROWS)
