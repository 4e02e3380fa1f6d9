"""Every statement that the application can send."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, cast

from todo_api.app import RESOURCES
from todo_api.db.statement import Statement
from todo_api.lists import statements as lists
from todo_api.operations.health import FIND_SCHEMA_VERSION
from todo_api.resources.changes import changes_statement
from todo_api.resources.pages import count_statement, list_statement
from todo_api.resources.statements import FIND_RESPONSE, ConditionalChange
from todo_api.resources.trash import trash_statement
from todo_api.tasks import labels, places
from todo_api.tasks.fields import TASK
from todo_api.users import statements as users

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from todo_api.tasks.places import TaskStatements

# Statements on data without an owner.
WITHOUT_OWNER = {FIND_SCHEMA_VERSION}


def statements() -> Iterator[tuple[str, Statement]]:
    """Return each statement with a name.

    If the SQL depends on fields, filters or sort, there is a statement for each of them.
    """
    yield "find schema version", FIND_SCHEMA_VERSION
    yield "find response", FIND_RESPONSE
    for module in (users, labels, places, lists):
        yield from named_statements(module.__name__, vars(module))
    yield from named_statements("list_changes", vars(lists.ListChanges(TASK)))
    for fields in (("completed",), ("completed", "completed_at")):
        yield from named_statements(
            "task", {"complete_tree": cast("TaskStatements", TASK.statements).complete_tree(fields)}
        )
    yield "changes", changes_statement(RESOURCES)
    yield "trash", trash_statement(RESOURCES)
    yield "trash after a position", trash_statement(RESOURCES, after=True)
    for resource in RESOURCES:
        fields = resource.writable_names
        updates = {
            f"update_{'_'.join(changed)}": resource.statements.update(changed)
            for changed in (*((name,) for name in fields), fields)
        }
        yield from named_statements(resource.name, vars(resource.statements) | updates)
        sorts = [prefix + name for name in resource.sort_keys for prefix in ("", "-")]
        names = tuple(sorted(resource.filters))
        # The conditions for a single value: see Filters.conditions.
        singles = tuple(f"{name}=" for name in names if resource.filters[name].single is not None)
        for filters in ((), *((name,) for name in (*names, *singles)), names):
            yield f"count {resource.plural} {filters}", count_statement(resource, filters)
            for sort, after in product(sorts, (False, True)):
                statement = list_statement(resource, filters, sort, after=after)
                yield f"list {resource.plural} {filters} {sort} {after}", statement


def named_statements(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Statement]]:
    """Yield each statement among these values, with a name."""
    for name, value in values.items():
        if isinstance(value, Statement):
            yield f"{prefix}.{name}", value
        elif isinstance(value, ConditionalChange):
            for number, statement in enumerate(value.statements, 1):
                yield f"{prefix}.{name}.{number}", statement
