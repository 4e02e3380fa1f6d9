"""Requests can write only the columns that are theirs: the triggers write the others."""

import uuid

import psycopg
import pytest
from psycopg import sql

from todo_api.app import RESOURCES
from todo_api.db.database import APPLICATION_ROLE
from todo_api.tasks.fields import TASK

WRITTEN_ON_INSERT = {
    resource: {"user_id", "id", *resource.written_columns} for resource in RESOURCES
}
# A move writes the position.
WRITTEN_ON_UPDATE = {
    resource: {"deleted_at", "position", *resource.written_columns} for resource in RESOURCES
}

EACH_COLUMN = [
    pytest.param(resource, column.name, id=f"{resource.plural}-{column.name}")
    for resource in RESOURCES
    for column in resource.table.columns
]


@pytest.fixture
def attempt(client, connection, user_id, task):  # noqa: ARG001  a row of each resource
    """Return a function that runs a statement as the role of requests; its changes are undone."""
    client.post(f"/api/{user_id}/lists", json={"name": "Groceries"})

    def run(statement, *values):
        with connection.transaction(force_rollback=True):
            connection.execute(
                "SELECT set_config('role', %s, true), set_config('todo.user_id', %s, true)",
                (APPLICATION_ROLE, user_id),
            )
            return connection.execute(statement, values).rowcount

    return run


def test_triggers_alone_write_representations_revisions_and_times():
    written = WRITTEN_ON_INSERT[TASK] | WRITTEN_ON_UPDATE[TASK]

    assert {column.name for column in TASK.table.columns} - written == {
        *("json", "revision", "created_at", "updated_at", "attempt", "deleted_with"),
        *("due_sort", "place"),
    }


@pytest.mark.parametrize(("resource", "column"), EACH_COLUMN)
def test_requests_can_update_only_their_columns(attempt, resource, column):
    statement = sql.SQL("UPDATE {} SET {} = {}").format(
        sql.Identifier(resource.plural), sql.Identifier(column), sql.Identifier(column)
    )

    if column in WRITTEN_ON_UPDATE[resource]:
        assert attempt(statement) == 1
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            attempt(statement)


@pytest.mark.parametrize(("resource", "column"), EACH_COLUMN)
def test_requests_can_insert_only_their_columns(attempt, resource, column):
    """The new row is a copy of a row of the user: its required members and this column."""
    required = [field.name for field in resource.fields if field.required]
    copied = dict.fromkeys(["user_id", *required, column])
    copied.pop("id", None)
    names = sql.SQL(", ").join(map(sql.Identifier, copied))
    statement = sql.SQL("INSERT INTO {table} (id, {names}) SELECT %s, {names} FROM {table}").format(
        table=sql.Identifier(resource.plural), names=names
    )

    if column in WRITTEN_ON_INSERT[resource]:
        assert attempt(statement, uuid.uuid4()) == 1
    else:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            attempt(statement, uuid.uuid4())


@pytest.mark.parametrize("name", ["json", "revision", "due_sort", "attempt"])
def test_requests_cannot_write_defaults_into_other_columns(attempt, name):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attempt(sql.SQL("UPDATE tasks SET {} = DEFAULT").format(sql.Identifier(name)))


def test_requests_cannot_switch_off_the_triggers(attempt):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attempt("ALTER TABLE tasks DISABLE TRIGGER write_row_on_update")
