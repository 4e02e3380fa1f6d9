"""The database refuses what a statement forgot, whatever role the application logs in as."""

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
from todo_api.db.tables import users
from todo_api.resources.items import delete_item, find_item, insert_item
from todo_api.tasks.fields import TASK

tasks = TASK.table

pytestmark = pytest.mark.pooled

# Statements of which the owner's condition was taken out.
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
DELETE_ALL_TASKS = compiled(delete(tasks))
INSERT_FOR_OTHER = compiled(insert(tasks).values(user_id=OTHER, id=ID, title=TITLE))
INSERT_OTHER = compiled(insert(users).values(id=OTHER))
GIVE_AWAY = compiled(update(tasks).where(tasks.c.user_id == OWNER).values(user_id=OTHER))
DIVIDE_BY_NOTHING = compiled(select(literal_column("1 / 0")))

# What a request must not leave behind on its connection.
LEFT_BEHIND = """
    SELECT pg_backend_pid(), current_user::text, nullif(current_setting('todo.user_id', true), ''),
           current_setting('statement_timeout'), current_setting('transaction_isolation')
"""


class Login(NamedTuple):
    """A role's name, and the URL that logs in as it."""

    name: str
    url: str


class Pair(NamedTuple):
    """Two users, each with one task, made through the application's own path."""

    me: uuid.UUID
    other: uuid.UUID


@pytest.fixture(scope="module")
def logins(server, database_url, new_login, new_database):  # noqa: ARG001  makes the role todo_app
    """Those who may log in, to a database that a plain role owns and has migrated itself."""
    owner = new_login("owner", "CREATEROLE")
    guest = new_login("guest")
    above = new_login("above", "BYPASSRLS")
    # To the owner as to whomever: it finds a role todo_app that another database's owner has made.
    execute(server, f"GRANT todo_app, todo_maintenance TO {owner}, {guest}, {above}")
    url = new_database("owned", owner=owner)
    migrate(as_login(url, owner))
    with psycopg.connect(url) as connection:
        superuser = connection.info.user
    names = {"owner": owner, "guest": guest, "bypassrls": above}
    return {
        "superuser": Login(superuser, url),
        **{purpose: Login(name, as_login(url, name)) for purpose, name in names.items()},
    }


@pytest.fixture(params=["superuser", "owner", "guest", "bypassrls"])
def login(logins, request):
    return logins[request.param]


@pytest.fixture
def database(open_database, login):
    """The application's path, with one connection: each statement meets what the last one left."""
    return open_database(DATABASE_URL=login.url, WEB_THREADS="1")


@pytest.fixture
def pair(database):
    made = Pair(uuid.uuid4(), uuid.uuid4())
    for title, owner in zip(["mine", "theirs"], made, strict=True):
        insert_item(database, owner, TASK, NEW_TASK | {"title": title})
    return made


@pytest.fixture
def everything(logins):
    """All rows of a user, as a superuser sees them."""
    with psycopg.connect(logins["superuser"].url, autocommit=True) as connection:

        def read(owner):
            return connection.execute(
                "SELECT title, tasks.revision, deleted_at, users.revision"
                " FROM tasks LEFT JOIN users ON users.id = user_id WHERE user_id = %s",
                (owner,),
            ).fetchall()

        yield read


def test_the_logins_are_who_they_should_be(logins):
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


def test_a_user_has_the_use_of_their_own_tasks(database):
    me = uuid.uuid4()

    task = insert_item(database, me, TASK, NEW_TASK)

    assert find_item(database, me, TASK, task.id) == task
    assert delete_item(database, me, TASK, task.id).applied
    assert find_item(database, me, TASK, task.id) is None


def test_no_row_of_another_user_is_seen(database, pair):
    assert database.all(pair.me, ALL_TASKS) == [("mine",)]
    assert database.all(pair.me, ALL_USERS) == [(pair.me,)]
    assert database.all(uuid.uuid4(), ALL_TASKS) == []


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [(CHANGE_ALL_TASKS, {"title": "changed"}), (TRASH_ALL_TASKS, {}), (CHANGE_ALL_USERS, {})],
    ids=["change", "soft delete", "users"],
)
def test_no_row_of_another_user_is_changed(database, pair, everything, statement, parameters):
    before = everything(pair.other)

    changed = database.all(pair.me, statement, **parameters)

    assert changed == [(pair.me,)]
    assert everything(pair.other) == before == [("theirs", 1, None, 1)]


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (INSERT_FOR_OTHER, {"id": uuid.uuid4(), "title": "forced upon"}),
        (GIVE_AWAY, {}),
        (DELETE_ALL_TASKS, {}),
    ],
    ids=["insert", "give away", "delete"],
)
def test_what_a_user_may_not_do_to_another_is_refused(
    database, pair, everything, statement, parameters
):
    with pytest.raises(errors.InsufficientPrivilege) as refusal:
        database.all(pair.me, statement, other=pair.other, **parameters)

    assert refusal.value.sqlstate == "42501"
    assert everything(pair.other) == [("theirs", 1, None, 1)]
    assert everything(pair.me) == [("mine", 1, None, 1)]


def test_no_other_user_is_erased(database, pair, everything):
    erased = database.all(pair.me, ERASE_ALL_USERS)

    assert erased == [(pair.me,)]
    assert everything(pair.me) == []
    assert everything(pair.other) == [("theirs", 1, None, 1)]


def test_no_user_is_made_for_another(database, pair):
    with pytest.raises(errors.InsufficientPrivilege):
        database.all(pair.me, INSERT_OTHER, other=uuid.uuid4())


def test_with_no_user_nothing_is_seen_or_changed(database, pair, everything):
    assert database.all(None, ALL_TASKS) == []
    assert database.all(None, ALL_USERS) == []
    assert database.all(None, CHANGE_ALL_TASKS, title="changed") == []
    assert database.all(None, TRASH_ALL_TASKS) == []
    assert everything(pair.me) == [("mine", 1, None, 1)]


def test_with_no_user_nothing_is_made(database):
    with pytest.raises(errors.InsufficientPrivilege):
        database.all(None, INSERT_FOR_OTHER, other=uuid.uuid4(), id=uuid.uuid4(), title="nobody's")


@pytest.mark.usefixtures("pair")
def test_a_setting_never_made_and_one_left_empty_show_nothing(login):
    with psycopg.connect(login.url, autocommit=True) as connection:
        never_made = seen_as_application(connection)
        with connection.transaction():
            connection.execute("SELECT set_config('todo.user_id', %s, true)", (str(uuid.uuid4()),))
        left_empty = seen_as_application(connection)

    assert never_made == (None, 0, 0)
    assert left_empty == ("", 0, 0)


def seen_as_application(connection):
    with connection.transaction():
        connection.execute("SET LOCAL ROLE todo_app")
        return connection.execute(
            "SELECT current_setting('todo.user_id', true),"
            " (SELECT count(*) FROM tasks), (SELECT count(*) FROM users)"
        ).fetchone()


def test_nothing_is_left_for_the_next_user_of_a_connection(database, pair, login):
    before = left_behind(database)
    database.all(pair.me, ALL_TASKS)
    after = left_behind(database)

    assert before == after
    assert after[1:] == (login.name, None, "0", "read committed")


@pytest.mark.parametrize(
    ("statement", "sqlstate"), [(INSERT_FOR_OTHER, "42501"), (DIVIDE_BY_NOTHING, "22012")]
)
def test_a_connection_is_clean_and_usable_after_an_error(
    database, pair, login, statement, sqlstate
):
    before = left_behind(database)

    with pytest.raises(psycopg.Error) as error:
        database.all(pair.me, statement, other=pair.other, id=uuid.uuid4(), title="refused")

    assert error.value.sqlstate == sqlstate
    assert left_behind(database) == before
    assert before[1:] == (login.name, None, "0", "read committed")
    assert database.all(pair.other, ALL_TASKS) == [("theirs",)]


def left_behind(database):
    with database.pool.connection(database.deadline) as connection:
        return connection.execute(LEFT_BEHIND).fetchone()


@pytest.mark.parametrize("login", ["owner", "guest"], indirect=True)
def test_a_plain_login_sees_nothing_beside_the_applications_path(login, pair, everything):
    with psycopg.connect(login.url, autocommit=True) as connection:
        seen = connection.execute("SELECT title FROM tasks").fetchall()
        changed = connection.execute("UPDATE tasks SET title = 'changed'").rowcount

    assert seen == []
    assert changed == 0
    assert everything(pair.me) == [("mine", 1, None, 1)]
