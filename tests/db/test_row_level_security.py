"""PostgreSQL protects users from statements without an owner, for every role of the login."""

from __future__ import annotations

import uuid
from typing import NamedTuple

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import (
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from tests.support.api import NEW_TASK
from tests.support.postgresql import as_login, execute, migrate
from todo_api.db.statement import ID, OWNER, compiled
from todo_api.db.tables import database_state, users
from todo_api.resources.items import delete_item, find_item, insert_item
from todo_api.tasks.fields import TASK
from todo_api.web.conditional import Precondition

tasks = TASK.table

pytestmark = pytest.mark.pooled

# Statements without the owner's condition.
TITLE = bindparam("title", type_=Text)
OTHER = bindparam("other", type_=Uuid)
ALL_TASKS = compiled(select(tasks.c.title))
ALL_USERS = compiled(select(users.c.id))
CHANGE_ALL_TASKS = compiled(update(tasks).values(title=TITLE).returning(tasks.c.user_id))
CHANGE_ALL_USERS = compiled(
    update(users)
    .values(revision=users.c.revision.op("+")(literal_column("1")))
    .returning(users.c.id)
)
TRASH_ALL_TASKS = compiled(
    update(tasks).values(deleted_at=func.clock_timestamp()).returning(tasks.c.user_id)
)
ERASE_ALL_USERS = compiled(delete(users).returning(users.c.id))
DELETE_ALL_TASKS = compiled(delete(tasks).returning(tasks.c.user_id))
SET_EPOCH = compiled(update(database_state).values(epoch=func.gen_random_uuid()))
INSERT_FOR_OTHER = compiled(insert(tasks).values(user_id=OTHER, id=ID, title=TITLE))
INSERT_OTHER = compiled(insert(users).values(id=OTHER))
CHANGE_OWNER = compiled(update(tasks).where(tasks.c.user_id == OWNER).values(user_id=OTHER))
DIVIDE_BY_ZERO = compiled(select(literal_column("1 / 0")))

# The state of a connection that no request may change.
CONNECTION_STATE = """
    SELECT pg_backend_pid(), current_user::text, nullif(current_setting('todo.user_id', true), ''),
           current_setting('statement_timeout'), current_setting('transaction_isolation')
"""


class Login(NamedTuple):
    """The name of a role, and the URL with this login."""

    name: str
    url: str


class Pair(NamedTuple):
    """Two users with one task each, inserted by the application's functions."""

    user: uuid.UUID
    other: uuid.UUID


@pytest.fixture(scope="module")
def logins(server, database_url, new_login, new_database):  # noqa: ARG001  its migrations create todo_app
    """Four logins to a database that belongs to an unprivileged role, which has migrated it."""
    owner = new_login("owner", "CREATEROLE")
    guest = new_login("guest")
    bypassrls = new_login("bypassrls", "BYPASSRLS")
    # The owner needs the grant, too: the owner of another database has created these roles.
    execute(server, f"GRANT todo_app, todo_maintenance TO {owner}, {guest}, {bypassrls}")
    url = new_database("owned", owner=owner)
    migrate(as_login(url, owner))
    with psycopg.connect(url) as connection:
        superuser = connection.info.user
    names = {"owner": owner, "guest": guest, "bypassrls": bypassrls}
    return {
        "superuser": Login(superuser, url),
        **{purpose: Login(name, as_login(url, name)) for purpose, name in names.items()},
    }


@pytest.fixture(params=["superuser", "owner", "guest", "bypassrls"])
def login(logins, request):
    return logins[request.param]


@pytest.fixture
def database(open_database, login):
    """The application's database with one connection, which all statements share."""
    return open_database(DATABASE_URL=login.url, WEB_THREADS="1")


@pytest.fixture
def pair(database):
    owners = Pair(uuid.uuid4(), uuid.uuid4())
    for title, owner in zip(["own", "other"], owners, strict=True):
        insert_item(database, owner, TASK, None, NEW_TASK | {"title": title})
    return owners


@pytest.fixture
def rows_before(pair, rows_of_user):
    """The rows of both users before the test."""
    rows = Pair(rows_of_user(pair.user), rows_of_user(pair.other))
    assert [title for ((title, *_),) in rows] == ["own", "other"]
    return rows


@pytest.fixture
def rows_of_user(logins):
    """Read all rows of a user as a superuser."""
    with psycopg.connect(logins["superuser"].url, autocommit=True) as connection:

        def read(owner):
            return connection.execute(
                "SELECT title, tasks.revision, deleted_at, users.revision"
                " FROM tasks LEFT JOIN users ON users.id = user_id WHERE user_id = %s",
                (owner,),
            ).fetchall()

        yield read


def test_logins_have_the_expected_attributes(logins):
    with psycopg.connect(logins["superuser"].url) as connection:
        rows = connection.execute(
            """
            SELECT rolname::text, rolsuper, rolbypassrls, rolname = tableowner
            FROM pg_roles, pg_tables WHERE tablename = 'tasks' AND rolname = ANY(%s)
            """,
            ([login.name for login in logins.values()],),
        ).fetchall()

    assert sorted(rows) == sorted(
        [
            (logins["superuser"].name, True, True, False),
            (logins["owner"].name, False, False, True),
            (logins["guest"].name, False, False, False),
            (logins["bypassrls"].name, False, True, False),
        ]
    )


def test_user_can_insert_read_and_delete_own_tasks(database):
    user = uuid.uuid4()

    task = insert_item(database, user, TASK, None, NEW_TASK).item

    assert find_item(database, user, TASK, task.id) == task
    assert delete_item(database, user, TASK, task.id, Precondition()).is_as_requested
    assert find_item(database, user, TASK, task.id) is None


def test_rows_of_another_user_are_not_visible(database, pair):
    assert database.all(pair.user, ALL_TASKS) == [("own",)]
    assert database.all(pair.user, ALL_USERS) == [(pair.user,)]
    assert database.all(uuid.uuid4(), ALL_TASKS) == []


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [(CHANGE_ALL_TASKS, {"title": "changed"}), (TRASH_ALL_TASKS, {}), (CHANGE_ALL_USERS, {})],
    ids=["change", "soft delete", "users"],
)
def test_rows_of_another_user_are_not_changed(
    database, pair, rows_before, rows_of_user, statement, parameters
):
    changed = database.all(pair.user, statement, **parameters)

    assert changed == [(pair.user,)]
    assert rows_of_user(pair.other) == rows_before.other
    assert rows_of_user(pair.user) != rows_before.user


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (INSERT_FOR_OTHER, {"id": uuid.uuid4(), "title": "inserted"}),
        (CHANGE_OWNER, {}),
    ],
    ids=["insert", "change owner"],
)
def test_insert_and_change_for_another_user_are_refused(
    database, pair, rows_before, rows_of_user, statement, parameters
):
    with pytest.raises(errors.InsufficientPrivilege) as refusal:
        database.all(pair.user, statement, other=pair.other, **parameters)

    assert refusal.value.sqlstate == "42501"
    assert rows_of_user(pair.other) == rows_before.other
    assert rows_of_user(pair.user) == rows_before.user


def test_live_tasks_are_not_removed(database, pair, rows_before, rows_of_user):
    database.all(pair.user, DELETE_ALL_TASKS)

    assert rows_of_user(pair.user) == rows_before.user
    assert rows_of_user(pair.other) == rows_before.other


def test_trash_of_another_user_is_not_removed(database, pair, rows_of_user):
    for owner in pair:
        database.all(owner, TRASH_ALL_TASKS)
    trash = rows_of_user(pair.other)

    removed = database.all(pair.user, DELETE_ALL_TASKS)

    assert removed == [(pair.user,)]
    assert rows_of_user(pair.user) == []
    assert rows_of_user(pair.other) == trash != []


def test_epoch_of_the_database_is_not_changed(database, pair):
    with pytest.raises(errors.InsufficientPrivilege):
        database.all(pair.user, SET_EPOCH)


def test_another_user_is_not_erased(database, pair, rows_before, rows_of_user):
    erased = database.all(pair.user, ERASE_ALL_USERS)

    assert erased == [(pair.user,)]
    assert rows_of_user(pair.user) == []
    assert rows_of_user(pair.other) == rows_before.other


def test_insert_of_another_user_is_refused(database, pair):
    with pytest.raises(errors.InsufficientPrivilege):
        database.all(pair.user, INSERT_OTHER, other=uuid.uuid4())


def test_without_a_user_no_row_is_visible_or_changed(database, pair, rows_before, rows_of_user):
    assert database.all(None, ALL_TASKS) == []
    assert database.all(None, ALL_USERS) == []
    assert database.all(None, CHANGE_ALL_TASKS, title="changed") == []
    assert database.all(None, TRASH_ALL_TASKS) == []
    assert database.all(None, DELETE_ALL_TASKS) == []
    assert rows_of_user(pair.user) == rows_before.user


def test_without_a_user_insert_is_refused(database):
    with pytest.raises(errors.InsufficientPrivilege):
        database.all(
            None, INSERT_FOR_OTHER, other=uuid.uuid4(), id=uuid.uuid4(), title="without owner"
        )


@pytest.mark.usefixtures("pair")
def test_no_row_is_visible_if_the_setting_is_unset_or_empty(login):
    with psycopg.connect(login.url, autocommit=True) as connection:
        unset = count_visible_rows(connection)
        with connection.transaction():
            connection.execute("SELECT set_config('todo.user_id', %s, true)", (str(uuid.uuid4()),))
        empty = count_visible_rows(connection)

    assert unset == (None, 0, 0)
    assert empty == ("", 0, 0)


def count_visible_rows(connection):
    with connection.transaction():
        connection.execute("SET LOCAL ROLE todo_app")
        return connection.execute(
            "SELECT current_setting('todo.user_id', true),"
            " (SELECT count(*) FROM tasks), (SELECT count(*) FROM users)"
        ).fetchone()


def test_statement_does_not_change_the_state_of_the_connection(database, pair, login):
    before = connection_state(database)
    database.all(pair.user, ALL_TASKS)
    after = connection_state(database)

    assert before == after
    assert after[1:] == (login.name, None, "0", "read committed")


@pytest.mark.parametrize(
    ("statement", "sqlstate"), [(INSERT_FOR_OTHER, "42501"), (DIVIDE_BY_ZERO, "22012")]
)
def test_connection_is_usable_and_unchanged_after_an_error(
    database, pair, login, statement, sqlstate
):
    before = connection_state(database)

    with pytest.raises(psycopg.Error) as error:
        database.all(pair.user, statement, other=pair.other, id=uuid.uuid4(), title="refused")

    assert error.value.sqlstate == sqlstate
    assert connection_state(database) == before
    assert before[1:] == (login.name, None, "0", "read committed")
    assert database.all(pair.other, ALL_TASKS) == [("other",)]


def connection_state(database):
    with database.pool.connection(database.deadline) as connection:
        return connection.execute(CONNECTION_STATE).fetchone()


@pytest.mark.parametrize("login", ["owner", "guest"], indirect=True)
def test_unprivileged_login_sees_no_row_in_a_plain_connection(
    login, pair, rows_before, rows_of_user
):
    with psycopg.connect(login.url, autocommit=True) as connection:
        seen = connection.execute("SELECT title FROM tasks").fetchall()
        changed = connection.execute("UPDATE tasks SET title = 'changed'").rowcount

    assert seen == []
    assert changed == 0
    assert rows_of_user(pair.user) == rows_before.user
