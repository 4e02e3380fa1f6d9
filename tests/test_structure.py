"""Promises that no single request shows: they hold for what is added later, too."""

import inspect
import re
import sys
from importlib import import_module
from pkgutil import walk_packages

import todo_api
from tests.support.differences import assert_same_lines
from tests.support.statements import OF_NO_USER, statements
from todo_api.app import RESOURCES
from todo_api.db import tables
from todo_api.db.database import ACT_AS_OWNER, ACT_AS_OWNER_IN_TIME
from todo_api.db.statement import Statement
from todo_api.resources.types import WHITE_SPACE
from todo_api.web.operation import operation_of

# The settings that each transaction begins with.
TRANSACTION_SETTINGS = {ACT_AS_OWNER, ACT_AS_OWNER_IN_TIME}

TABLES = [resource.plural for resource in RESOURCES]
OWNED = [*TABLES, "idempotency_keys"]

# What a request cannot break, whatever it sends: a violation is our bug, and a 500.
INTERNAL = {
    "pk_users",
    "ck_users_purged_revision_known",
    "ck_users_revision_not_negative",
    *(f"pk_{table}" for table in TABLES),
    *(f"fk_{table}_user_id_users" for table in TABLES),
    *(f"ck_{table}_revision_positive" for table in TABLES),
    "pk_idempotency_keys",
    "fk_idempotency_keys_user_id_users",
    "ck_idempotency_keys_key_length",
    "ck_idempotency_keys_fingerprint_length",
}


def test_every_statement_names_the_owner_wherever_it_reads_or_writes():
    """Each FROM or UPDATE of a table is followed by its owner; each INSERT begins with it."""
    owned = "|".join(OWNED)
    for name, statement in statements():
        text = re.sub(r"\s+", " ", statement.sql.decode())
        touched = re.findall(rf"(?:FROM|UPDATE|JOIN|INTO|USING) (users|{owned})\b", text)
        named = re.findall(
            rf"WHERE (?:users\.id|(?:{owned})\.user_id) = %\(owner\)s::UUID"
            rf"|INSERT INTO (?:{owned}) \(user_id, .*?SELECT %\(owner\)s::UUID",
            text,
        )
        if statement in OF_NO_USER:
            assert not touched, name
        else:
            assert touched, name
            assert len(named) == len(touched), name


def test_every_statement_of_the_package_is_tested_above():
    """A module's own statements; those of a resource are found by its `statements`."""
    known = {statement for _, statement in statements()} | TRANSACTION_SETTINGS

    for module in walk_packages(todo_api.__path__, "todo_api."):
        for name, value in vars(import_module(module.name)).items():
            assert not isinstance(value, Statement) or value in known, f"{module.name}.{name}"


def test_every_table_has_row_level_security_forced(connection):
    rows = connection.execute("""
        SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    """).fetchall()

    assert_same_lines(
        sorted(rows),
        sorted(
            [
                ("alembic_version", False, False),
                *((table, True, True) for table in ("users", *OWNED)),
            ]
        ),
        "A migration enables and forces row-level security for each table: see 0003.",
    )


def test_every_policy_is_for_the_owner_reading_and_writing(connection):
    owner = "NULLIF(current_setting('todo.user_id'::text, true), ''::text))::uuid)"
    rows = connection.execute(
        """
        SELECT tablename, permissive, cmd, qual, with_check FROM pg_policies
        WHERE policyname = 'owner' AND roles = '{public}' ORDER BY tablename
        """
    ).fetchall()

    assert_same_lines(
        [row[:3] for row in rows],
        [(table, "PERMISSIVE", "ALL") for table in sorted(["users", *OWNED])],
        "A migration makes the policy `owner` for each table: see 0003.",
    )
    for table, _, _, using, with_check in rows:
        column = "id" if table == "users" else "user_id"
        assert using == with_check == f"({column} = ({owner}"


def test_one_role_goes_across_users_and_sees_only_what_is_old(connection):
    rows = connection.execute(
        """
        SELECT tablename, roles::text, qual FROM pg_policies
        WHERE policyname <> 'owner' ORDER BY tablename
        """
    ).fetchall()

    of_keys = "(created_at < (clock_timestamp() - '24:00:00'::interval))"
    of_trash = "(deleted_at < (clock_timestamp() - '30 days'::interval))"
    sees = {"idempotency_keys": of_keys, "users": "true"} | dict.fromkeys(TABLES, of_trash)
    assert_same_lines(
        rows,
        [(table, "{todo_maintenance}", condition) for table, condition in sorted(sees.items())],
        "A migration makes the policy of the role that purges for each table: see 0005.",
    )
    assert tables.TRASH_DAYS == 30
    assert tables.KEY_HOURS == 24


def test_every_table_of_a_resource_numbers_its_changes(connection):
    rows = connection.execute("""
        SELECT tgrelid::regclass::text, proname FROM pg_trigger JOIN pg_proc ON tgfoid = pg_proc.oid
        WHERE NOT tgisinternal
    """).fetchall()

    assert_same_lines(
        sorted(rows),
        sorted((table, "take_revision") for table in TABLES for _ in ("insert", "update")),
        "A migration makes both triggers for each table: see 0002.",
    )


def test_every_constraint_is_mapped_or_internal(connection):
    named = {
        name
        for (name,) in connection.execute("""
            SELECT conname FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
              AND conname NOT LIKE 'alembic%'
        """)
    }

    assert_same_lines(
        sorted(named),
        sorted({*INTERNAL, *(name for each in RESOURCES for name in each.constraints)}),
        "Every constraint is a rule of a field (todo_api/resources/types.py), or in INTERNAL"
        " (this file) if no request can break it.",
    )


def test_every_key_and_index_begins_with_the_owner():
    keys = [
        key
        for table in (*(resource.table for resource in RESOURCES), tables.idempotency_keys)
        for key in (table.primary_key, *table.foreign_key_constraints, *table.indexes)
    ]

    assert {next(iter(key.columns)).name for key in keys} == {"user_id"}


def test_the_database_strips_what_python_strips():
    white_space = {chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()}

    escaped = re.findall(r"\\([0-9A-F]{4})", WHITE_SPACE)

    assert {chr(int(code, 16)) for code in escaped} == white_space


def test_every_operation_documents_its_refusals(app):
    paths = document(app)["paths"]
    operations = {
        (method.upper(), path): operation
        for path, methods in paths.items()
        for method, operation in methods.items()
        if method != "parameters"
    }

    assert operations
    for (method, path), operation in operations.items():
        documented = set(operation["responses"])
        assert "500" in documented, (method, path)
        if path not in ("/", "/livez", "/health"):
            assert "401" in documented, (method, path)
            assert operation["security"] == [{"bearer": []}], (method, path)
        if "{user_id}" in path:
            assert {"404", "422", "503"} <= documented, (method, path)
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= documented, (method, path)
        for status in documented - {"200", "201", "204", "302", "304"}:
            assert operation["responses"][status] == {
                "$ref": f"#/components/responses/Problem{status}"
            }


def test_every_route_is_documented(app):
    documented = set(document(app)["paths"])
    routes = {
        re.sub("<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()
    }

    assert {r for r in routes if not r.startswith(("/docs", "/openapi.json"))} == documented


def test_every_view_says_in_a_sentence_what_it_does(app):
    for endpoint, view in app.view_functions.items():
        if operation_of(view).is_documented:
            assert re.match(r"[A-Z].*\.$", inspect.getdoc(view).splitlines()[0]), endpoint


def document(app):
    return app.test_client().get("/openapi.json").json
