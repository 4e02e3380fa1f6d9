"""Every statement that the application can send."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from todo_api.app import RESOURCES
from todo_api.db.statement import Statement
from todo_api.operations.health import FIND_SCHEMA_VERSION
from todo_api.resources.changes import changes_statement
from todo_api.resources.pages import count_statement, list_statement
from todo_api.resources.statements import FIND_RESPONSE, ConditionalChange
from todo_api.resources.trash import trash_statement
from todo_api.users.statements import DELETE

if TYPE_CHECKING:
    from collections.abc import Iterator

# Statements on data without an owner.
WITHOUT_OWNER = {FIND_SCHEMA_VERSION}


def statements() -> Iterator[tuple[str, Statement]]:
    """Return each statement with a name.

    If the SQL depends on fields, filters or sort, there is a statement for each of them.
    """
    yield "find schema version", FIND_SCHEMA_VERSION
    yield "find response", FIND_RESPONSE
    yield "delete user", DELETE
    yield "changes", changes_statement(RESOURCES)
    yield "trash", trash_statement(RESOURCES)
    yield "trash after a position", trash_statement(RESOURCES, after=True)
    for resource in RESOURCES:
        fields = resource.field_names
        updates = {
            f"update_{'_'.join(changed)}": resource.statements.update(changed)
            for changed in (*((name,) for name in fields), fields)
        }
        for name, value in (vars(resource.statements) | updates).items():
            if isinstance(value, Statement):
                yield f"{resource.name}.{name}", value
            elif isinstance(value, ConditionalChange):
                yield f"{resource.name}.{name}.change", value.change
                yield f"{resource.name}.{name}.find_outcome", value.find_outcome
        sorts = [prefix + name for name in resource.sort_keys for prefix in ("", "-")]
        names = tuple(sorted(resource.filters))
        for filters in ((), *((name,) for name in names), names):
            yield f"count {resource.plural} {filters}", count_statement(resource, filters)
            for sort, after in product(sorts, (False, True)):
                statement = list_statement(resource, filters, sort, after=after)
                yield f"list {resource.plural} {filters} {sort} {after}", statement
