"""Feeds: rows of all resources of an owner in one order, such as the changes and the trash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, union_all

from todo_api.resources.pages import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Select

    from todo_api.resources.resource import Resource


def merge_branches(
    resources: Sequence[Resource],
    branch: Callable[[Resource], Select[Any]],
    order: Sequence[str],
    *,
    descending: bool = False,
) -> Select[Any]:
    """Return a SELECT of the first rows of all branches together, sorted by these columns.

    Each branch has its own order and limit, so that PostgreSQL reads at most one page per resource.
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
