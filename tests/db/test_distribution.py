"""The requirements of engines that distribute rows by owner: Citus, YugabyteDB, partitions."""

from __future__ import annotations

import re
import uuid

import orjson
import psycopg
import pytest

from tests.support.api import NEW_TASK
from tests.support.plans import explain_statement, steps
from tests.support.postgresql import PARTITION_TABLES, as_login, execute, migrate
from tests.support.statements import WITHOUT_OWNER, statements
from todo_api.app import RESOURCES
from todo_api.db.tables import metadata
from todo_api.lists.fields import LIST
from todo_api.resources.items import insert_item, insert_item_once, new_values
from todo_api.tasks.fields import TASK
from todo_api.web.idempotency import IdempotentRequest

# A table of one row that every node has a copy of. It is read and never joined.
REFERENCE_TABLE = "database_state"
OWNER_OF = {
    table.name: "id" if table.name == "users" else "user_id"
    for table in metadata.tables.values()
    if table.name != REFERENCE_TABLE
}


def test_every_key_and_index_begins_with_the_owner(connection):
    """Check primary, unique and foreign keys, and indexes."""
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


def test_every_foreign_key_is_the_owners_id(connection):
    rows = connection.execute("""
        SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE contype = 'f' AND connamespace = 'public'::regnamespace
    """).fetchall()

    assert {definition for (definition,) in rows} == {
        "FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE"
    }


def test_schema_has_no_object_that_all_nodes_must_share(connection):
    """Check sequences, enum types, exclusion constraints, identity columns and functions."""
    objects = connection.execute("""
        SELECT 'sequence', relname FROM pg_class WHERE relkind = 'S'
        UNION ALL SELECT 'enum', typname FROM pg_type WHERE typtype = 'e'
        UNION ALL SELECT 'exclusion', conname FROM pg_constraint WHERE contype = 'x'
        UNION ALL SELECT 'identity', attname FROM pg_attribute WHERE attidentity <> ''
        UNION ALL SELECT 'listen', proname FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND prosrc ~* 'notify|nextval|advisory'
    """).fetchall()

    assert objects == []


def test_every_statement_needs_only_the_node_of_its_owner():
    """Each statement names its owner (test_structure.py) and no other user."""
    for name, statement in statements():
        text = statement.sql.decode()
        assert not re.search(
            r"\b(listen|notify|nextval|pg_\w*advisory\w*)\b", text, re.IGNORECASE
        ), name
        owners = re.findall(r"(?:user_id|users\.id) = (%\(\w+\)s|[\w.]+)", text)
        assert set(owners) <= {"%(owner)s"}, name


OWNER = uuid.uuid4()
PARTITION = re.compile(r"_\d+$")
VALUES = {
    "id": uuid.uuid4(),
    **{
        name: value
        for resource in RESOURCES
        for name, value in new_values(
            resource,
            {
                field.name: resource.stored_fields[field.name].deserialize(field.example)
                for field in resource.writable_fields
            },
        ).items()
    },
    "key": "a-key",
    "fingerprint": bytes(32),
    "rows": 10,
    "client_revisions": [],
    "none_match": [],
}

NEW_LIST = {field.name: field.default for field in LIST.fields} | {"name": "Groceries"}
REQUEST = IdempotentRequest("a-key", "/api/a/tasks", bytes(32))


@pytest.fixture(scope="module")
def partitioned_url(new_database) -> str:
    url = new_database("divided")
    migrate(url)
    execute(url, PARTITION_TABLES)
    return url


@pytest.fixture(scope="module")
def planner(partitioned_url):
    with psycopg.connect(partitioned_url, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO tasks (user_id, id, title)
            SELECT gen_random_uuid(), gen_random_uuid(), 'Buy oat milk' FROM generate_series(1, 500)
        """)
        connection.execute(
            "INSERT INTO lists (user_id, id, name) VALUES (%s, %s, 'Groceries')",
            (OWNER, VALUES["new_list_id"]),
        )
        connection.execute(
            "INSERT INTO tasks (user_id, id, title, list_id) VALUES (%s, %s, 'Cook', %s)",
            (OWNER, VALUES["new_parent_id"], VALUES["new_list_id"]),
        )
        connection.execute("ANALYZE")
        yield connection


def test_every_statement_reads_one_partition_of_each_table(planner):
    values = VALUES | {"owner": OWNER}
    for name, statement in statements():
        if statement in WITHOUT_OWNER:
            continue
        unset = dict.fromkeys(statement.names)

        plan = explain_statement(planner, statement, unset | values)

        tables = {step["Relation Name"] for step in steps(plan) if "Relation Name" in step}
        partitions = [table for table in tables if PARTITION.search(table)]
        assert len(partitions) == len({PARTITION.sub("", table) for table in partitions}), (
            name,
            tables,
        )
        assert partitions or b"INSERT" in statement.sql, (name, tables)


def test_owner_without_privileges_can_partition_existing_tables(
    new_database, new_login, server, open_database
):
    login = new_login("divider")
    execute(server, f"GRANT todo_app, todo_maintenance TO {login}")
    url = new_database("divide", owner=login)
    migrate(as_login(url, login))
    database = open_database(DATABASE_URL=as_login(url, login))
    owners = [uuid.uuid4() for _ in range(50)]
    for owner in owners:
        insert_item_once(database, owner, TASK, None, NEW_TASK, REQUEST)
        insert_item(database, owner, LIST, None, NEW_LIST)

    with psycopg.connect(url, autocommit=True) as superuser:
        before, triggers_before = read_rows(superuser), read_triggers(superuser)
        execute(as_login(url, login), PARTITION_TABLES)
        after = read_rows(superuser)
        partitions = superuser.execute("SELECT count(DISTINCT tableoid) FROM tasks").fetchone()
        triggers_after = read_triggers(superuser)

    assert after == before
    assert triggers_after == triggers_before
    assert {table: len(rows) for table, rows in after.items()} == {
        "users": 50,
        "lists": 50,
        "tasks": 50,
        "idempotency_keys": 50,
    }
    assert partitions > (4,)
    for owner in owners:
        replayed = insert_item_once(database, owner, TASK, None, NEW_TASK, REQUEST)
        inserted = insert_item(database, owner, TASK, None, NEW_TASK)
        assert replayed.is_replayed
        assert inserted.item.revision > orjson.loads(replayed.body)["revision"]
    with psycopg.connect(url) as superuser:
        counted = superuser.execute("SELECT DISTINCT tasks, lists FROM users").fetchall()
    assert counted == [(2, 1)]


def read_triggers(connection):
    return connection.execute("""
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger
        WHERE tgrelid::regclass::text = ANY (%s) AND NOT tgisinternal AND tgparentid = 0 ORDER BY 2
    """, (list(OWNER_OF),)).fetchall()  # fmt: skip


def read_rows(connection):
    return {
        table: sorted(connection.execute(f"SELECT {table}::text FROM {table}").fetchall())
        for table in OWNER_OF
    }
