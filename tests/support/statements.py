"""Every statement that the application can send."""

from __future__ import annotations

from importlib import import_module
from itertools import chain, combinations, product
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import todo_api.statements
from todo_api.connection import Statement
from todo_api.schemas import SORTS
from todo_api.statements.operations import SCHEMA_VERSION
from todo_api.statements.pages import FILTERS, list_statement
from todo_api.statements.tasks import (
    VALUES,
    delete_statement,
    restore_statement,
    update_statement,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

# What belongs to no user, and so names none.
OF_NO_USER = {SCHEMA_VERSION}


def statements() -> Iterator[tuple[str, Statement]]:
    """Every statement of the package, those made for a shape in shapes enough to see each part."""
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, Statement):
                yield f"{module.__name__}.{name}", value
    for filters in ((), *((name,) for name in FILTERS), tuple(FILTERS)):
        for sort, after, deleted in product(SORTS, (False, True), (False, True)):
            made = list_statement(filters, sort, after=after, deleted=deleted)
            yield f"list {filters} {sort} {after} {deleted}", made
    for conditional in (False, True):
        yield "delete", delete_statement(conditional=conditional)
        yield "restore", restore_statement(conditional=conditional)
        for columns in chain.from_iterable(combinations(sorted(VALUES), n) for n in (1, 2, 3)):
            yield f"update {columns}", update_statement(*columns, conditional=conditional)


def modules() -> list[ModuleType]:
    """The modules of `todo_api.statements`."""
    return [
        import_module(f"todo_api.statements.{module.name}")
        for module in iter_modules(todo_api.statements.__path__)
    ]
