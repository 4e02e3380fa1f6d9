"""Every statement that the application can send."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from todo_api.app import RESOURCES
from todo_api.db.statement import Statement
from todo_api.operations.health import FIND_SCHEMA_VERSION
from todo_api.resources.changes import changes_statement
from todo_api.resources.pages import list_statement
from todo_api.resources.statements import FIND_RESPONSE
from todo_api.users.statements import DELETE

if TYPE_CHECKING:
    from collections.abc import Iterator

# Statements on data without an owner.
WITHOUT_OWNER = {FIND_SCHEMA_VERSION}


def statements() -> Iterator[tuple[str, Statement]]:
    """Return each statement with a name; of a statement with several shapes, one for each part."""
    yield "find schema version", FIND_SCHEMA_VERSION
    yield "find response", FIND_RESPONSE
    yield "delete user", DELETE
    for resource in RESOURCES:
        for name, value in vars(resource.statements).items():
            if isinstance(value, Statement):
                yield f"{resource.name}.{name}", value
        fields = tuple(field.name for field in resource.fields)
        for conditional in (False, True):
            build = resource.statements
            yield f"delete {resource.name}", build.delete(conditional=conditional)
            yield f"restore {resource.name}", build.restore(conditional=conditional)
            for changed in (*((name,) for name in fields), fields):
                statement = build.update(changed, conditional=conditional)
                yield f"update {resource.name} {changed}", statement
        yield f"{resource.name} changes", changes_statement(resource)
        sorts = [prefix + name for name in resource.sort_keys for prefix in ("", "-")]
        names = tuple(sorted(resource.filters))
        for filters in ((), *((name,) for name in names), names):
            for sort, after, deleted in product(sorts, (False, True), (False, True)):
                statement = list_statement(resource, filters, sort, after=after, deleted=deleted)
                yield f"list {resource.plural} {filters} {sort} {after} {deleted}", statement
