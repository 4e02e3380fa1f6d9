"""What an engine that distributes by owner asks for: Citus, YugabyteDB, or partitions."""

from __future__ import annotations

import re
import uuid

import psycopg
import pytest

from tests.support.api import NEW_TASK
from tests.support.plans import explain_statement, steps
from tests.support.postgresql import DIVIDE, as_login, execute, migrate
from tests.support.statements import WITHOUT_OWNER, statements
from todo_api.app import RESOURCES
from todo_api.db.tables import metadata
from todo_api.resources.items import insert_item, insert_item_once
from todo_api.tasks.fields import TASK
from todo_api.web.idempotency import IdempotentRequest

OWNER_OF = {
    table.name: "id" if table.name == "users" else "user_id" for table in metadata.tables.values()
}


def test_every_key_begins_with_the_owner(connection):
    """Primary keys, unique and foreign ones, and every index."""
    rows = connection.execute("""
        SELECT indrelid::regclass::text, attname FROM pg_index
        JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid::regclass::text = ANY (%s)
        UNION ALL
        SELECT conrelid::regclass::text, attname FROM pg_constraint
        JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
        WHERE contype IN ('p', 'u', 'f') AND conrelid::regclass::text = ANY (%s)
    """, (list(OWNER_OF), list(OWNER_OF))).fetchall()  # fmt: skip

    assert {table for table, _ in rows} == set(OWNER_OF)
    for table, column in rows:
        assert column == OWNER_OF[table]


def test_every_foreign_key_points_from_owner_to_owner(connection):
    rows = connection.execute("""
        SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE contype = 'f' AND connamespace = 'public'::regnamespace
    """).fetchall()

    assert {definition for (definition,) in rows} == {
        "FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE"
    }


def test_nothing_is_in_the_schema_that_one_node_would_have_to_keep_for_all(connection):
    """Sequences, enum types, exclusion constraints, and ids that the database makes."""
    found = connection.execute("""
        SELECT 'sequence', relname FROM pg_class WHERE relkind = 'S'
        UNION ALL SELECT 'enum', typname FROM pg_type WHERE typtype = 'e'
        UNION ALL SELECT 'exclusion', conname FROM pg_constraint WHERE contype = 'x'
        UNION ALL SELECT 'identity', attname FROM pg_attribute WHERE attidentity <> ''
        UNION ALL SELECT 'listen', proname FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prosrc ~* 'notify|nextval|advisory'
    """).fetchall()

    assert found == []


def test_no_statement_needs_more_than_the_owners_node():
    """Each is of one owner, by equality, wherever it reads or writes: test_structure.py says so."""
    for name, statement in statements():
        text = statement.sql.decode()
        assert not re.search(
            r"\b(listen|notify|nextval|pg_\w*advisory\w*)\b", text, re.IGNORECASE
        ), name
        owners = re.findall(r"(?:user_id|users\.id) = (%\(\w+\)s|[\w.]+)", text)
        assert set(owners) <= {"%(owner)s"}, name


PART = re.compile(r"_\d+$")
VALUES = {
    "id": uuid.uuid4(),
    **{f"new_{field.name}": field.example for each in RESOURCES for field in each.fields},
    "key": "a-key",
    "fingerprint": bytes(32),
    "rows": 10,
    "known": [],
    "none_match": [],
}

REQUEST = IdempotentRequest("a-key", "/api/a/tasks", bytes(32))


@pytest.fixture(scope="module")
def divided_url(new_database) -> str:
    url = new_database("divided")
    migrate(url)
    execute(url, DIVIDE)
    return url


@pytest.fixture(scope="module")
def planner(divided_url):
    with psycopg.connect(divided_url, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO tasks (user_id, id, title)
            SELECT gen_random_uuid(), gen_random_uuid(), 'Buy oat milk' FROM generate_series(1, 500)
        """)
        connection.execute("ANALYZE")
        yield connection


def test_every_statement_is_pruned_to_one_part_of_each_table(planner):
    values = VALUES | {"owner": uuid.uuid4()}
    for name, statement in statements():
        if statement in WITHOUT_OWNER:
            continue
        unset = dict.fromkeys(statement.names)

        plan = explain_statement(planner, statement, unset | values)

        read = {step["Relation Name"] for step in steps(plan) if "Relation Name" in step}
        parts = [part for part in read if PART.search(part)]
        assert len(parts) == len({PART.sub("", part) for part in parts}), (name, read)
        assert parts or b"INSERT" in statement.sql, (name, read)


def test_a_plain_owner_can_divide_what_is_there_and_lose_nothing(
    new_database, new_login, server, open_database
):
    login = new_login("divider")
    execute(server, f"GRANT todo_app, todo_maintenance TO {login}")
    url = new_database("divide", owner=login)
    migrate(as_login(url, login))
    database = open_database(DATABASE_URL=as_login(url, login))
    owners = [uuid.uuid4() for _ in range(50)]
    for owner in owners:
        insert_item_once(database, owner, TASK, NEW_TASK, REQUEST)

    with psycopg.connect(url, autocommit=True) as everything:
        before = rows_of(everything)
        execute(as_login(url, login), DIVIDE)
        after = rows_of(everything)
        parts = everything.execute("SELECT count(DISTINCT tableoid) FROM tasks").fetchone()

    assert after == before
    assert [len(rows) for rows in after.values()] == [50, 50, 50]
    assert parts > (4,)
    for owner in owners:
        assert insert_item_once(database, owner, TASK, NEW_TASK, REQUEST).is_replayed
        assert insert_item(database, owner, TASK, NEW_TASK).revision == 2


def rows_of(connection):
    return {
        table: sorted(connection.execute(f"SELECT {table}::text FROM {table}").fetchall())
        for table in OWNER_OF
    }
