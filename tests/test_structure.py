"""Rules for all statements, tables, constraints and routes, including those added later."""

import inspect
import re
import sys
from importlib import import_module
from pkgutil import walk_packages

import todo_api
from tests.support.differences import assert_same_lines
from tests.support.statements import WITHOUT_OWNER, statements
from todo_api.app import RESOURCES
from todo_api.db import tables
from todo_api.db.database import ACT_AS_OWNER, ACT_AS_OWNER_WITH_TIMEOUT
from todo_api.db.statement import Statement
from todo_api.resources.row_function import (
    function_name,
    json_function,
    json_function_name,
    row_function,
)
from todo_api.resources.types import WHITE_SPACE
from todo_api.web.operation import operation_of

# The statements that begin each transaction with its settings.
TRANSACTION_SETTINGS = {ACT_AS_OWNER, ACT_AS_OWNER_WITH_TIMEOUT}

TABLES = [resource.plural for resource in RESOURCES]
OWNED = [*TABLES, "idempotency_keys"]

# Constraints that no request can break. A violation is a bug of this project: status 500.
INTERNAL_CONSTRAINTS = {
    "pk_users",
    "ck_users_purged_revision_known",
    *(f"pk_{table}" for table in TABLES),
    *(f"fk_{table}_user_id_users" for table in TABLES),
    "pk_database_state",
    "ck_database_state_one_row",
    "pk_idempotency_keys",
    "fk_idempotency_keys_user_id_users",
    "ck_idempotency_keys_key_length",
    "ck_idempotency_keys_fingerprint_length",
}


def test_every_statement_has_an_owner_condition_for_each_table():
    """Each FROM or UPDATE of a table has a condition on its owner; each INSERT begins with it."""
    owned = "|".join(OWNED)
    for name, statement in statements():
        text = re.sub(r"\s+", " ", statement.sql.decode())
        table_uses = re.findall(
            rf"(?:(?<!DISTINCT )FROM|UPDATE|JOIN|INTO|USING) (users|{owned})\b", text
        )
        owner_conditions = re.findall(
            # Statements on the tasks below a task, or beside one, call this task `root`.
            rf"WHERE (?:users\.id|(?:{owned}|root)\.user_id) = %\(owner\)s::UUID"
            rf"|INSERT INTO (?:{owned}) \(user_id, .*?SELECT %\(owner\)s::UUID"
            r"|INSERT INTO users \(id\) SELECT %\(owner\)s::UUID",
            text,
        )
        if statement in WITHOUT_OWNER:
            assert not table_uses, name
        else:
            assert table_uses, name
            assert len(owner_conditions) == len(table_uses), name


def test_structural_tests_know_every_statement():
    """`statements()` yields every Statement that a module of todo_api has as an attribute."""
    tested = {statement for _, statement in statements()} | TRANSACTION_SETTINGS

    for module in walk_packages(todo_api.__path__, "todo_api."):
        for name, value in vars(import_module(module.name)).items():
            assert not isinstance(value, Statement) or value in tested, f"{module.name}.{name}"


def test_every_table_forces_row_level_security(connection):
    rows = connection.execute("""
        SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
    """).fetchall()

    assert_same_lines(
        sorted(rows),
        sorted(
            [
                ("alembic_version", False, False),
                ("database_state", False, False),
                *((table, True, True) for table in ("users", *OWNED)),
            ]
        ),
        "Enable and force row-level security for each table in its migration, as 0003 does.",
    )


def test_every_table_has_a_policy_that_limits_reads_and_writes_to_the_owner(connection):
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
        "Create the policy `owner` for each table in its migration, as 0003 does.",
    )
    for table, _, _, using, with_check in rows:
        column = "id" if table == "users" else "user_id"
        assert using == with_check == f"({column} = ({owner}"


def test_only_the_maintenance_role_has_policies_across_owners(connection):
    rows = connection.execute(
        """
        SELECT tablename, roles::text, qual FROM pg_policies
        WHERE policyname = 'maintenance' ORDER BY tablename
        """
    ).fetchall()

    keys_condition = "(created_at < (clock_timestamp() - '24:00:00'::interval))"
    trash_condition = "(deleted_at < (clock_timestamp() - '30 days'::interval))"
    conditions = {"idempotency_keys": keys_condition, "users": "true"} | dict.fromkeys(
        TABLES, trash_condition
    )
    assert_same_lines(
        rows,
        [
            (table, "{todo_maintenance}", condition)
            for table, condition in sorted(conditions.items())
        ],
        "Create the policy of todo_maintenance for each table in its migration, as 0005 does.",
    )
    assert tables.TRASH_DAYS == 30
    assert tables.KEY_HOURS == 24


def test_requests_can_remove_nothing_but_what_is_in_the_trash(connection):
    rows = connection.execute(
        """
        SELECT tablename, policyname, permissive, cmd, roles::text, qual FROM pg_policies
        WHERE policyname NOT IN ('owner', 'maintenance') ORDER BY tablename
        """
    ).fetchall()

    assert_same_lines(
        rows,
        [
            (table, "trash", "RESTRICTIVE", "DELETE", "{todo_app}", "(deleted_at IS NOT NULL)")
            for table in sorted(TABLES)
        ],
        "Create the policy `trash` for each resource in its migration, as 0009 does.",
    )


def test_every_table_of_a_resource_has_its_triggers(connection):
    rows = connection.execute("""
        SELECT tgrelid::regclass::text, proname FROM pg_trigger JOIN pg_proc ON tgfoid = pg_proc.oid
        WHERE NOT tgisinternal
    """).fetchall()

    assert_same_lines(
        sorted(rows),
        sorted(
            [
                ("users", "take_revision_of_user"),
                *(
                    (table, function)
                    for table in TABLES
                    for function in (
                        *(function_name(table), function_name(table)),  # on insert and update
                        *("write_usage", "count_deleted_rows"),
                    )
                ),
                *(("tasks", "place_task") for _ in ("insert", "update")),
            ]
        ),
        "Create the triggers of each table in its migration, as 0014 does.",
    )


def test_every_resource_has_the_functions_of_its_present_declaration(connection):
    """The functions in the database are those that `make migration` would write now."""
    for resource in RESOURCES:
        for name, function in (
            (function_name(resource.plural), row_function(resource)),
            (json_function_name(resource.plural), json_function(resource)),
        ):
            (source,) = connection.execute(
                "SELECT prosrc FROM pg_proc WHERE proname = %s", (name,)
            ).fetchone()

            assert f"AS $${source}$$" in function, (
                f"{name}: write the function in a migration with `make migration`."
            )


def test_every_constraint_has_an_error_message_or_is_internal(connection):
    constraints = {
        name
        for (name,) in connection.execute("""
            SELECT conname FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
              AND conname NOT LIKE 'alembic%'
        """)
    }
    # The rules that a trigger checks.
    for (source,) in connection.execute(
        "SELECT prosrc FROM pg_proc WHERE prosrc LIKE '%CONSTRAINT%'"
    ):
        constraints.update(re.findall("THEN '(ck_[a-z_]+)'", source))
    constraints.update(raised_rules(connection))

    assert_same_lines(
        sorted(constraints),
        sorted(
            {
                *INTERNAL_CONSTRAINTS,
                *(name for resource in RESOURCES for name in resource.constraints),
                *(
                    f"ck_{resource.plural}_{name}"
                    for resource in RESOURCES
                    for name in resource.conflicts
                ),
            }
        ),
        "Declare the constraint as a rule of a field (todo_api/resources/types.py), or add it to"
        " INTERNAL_CONSTRAINTS in this file if no request can break it.",
    )


# The functions that raise rules for the rows of each table, by `raise_rule` or `raise_quota`.
RAISING_FUNCTIONS = {
    "change_usage": TABLES,
    "place_task": ["tasks"],
    "position_beside": TABLES,
}


def raised_rules(connection):
    """Return the names of the rules that functions of the database raise."""
    sources = dict(
        connection.execute("""
            SELECT proname, prosrc FROM pg_proc
            WHERE prosrc ~ 'PERFORM raise_' AND pronamespace = 'public'::regnamespace
        """).fetchall()
    )
    assert_same_lines(
        sorted(sources),
        sorted(RAISING_FUNCTIONS),
        "Add the function to RAISING_FUNCTIONS in this file, with the tables of its rules.",
    )
    for name, source in sources.items():
        rules = re.findall(
            r"broken_rule := '(\w+)'|THEN '(\w+)'|raise_\w+\(\s*\w+, '(\w+)'", source
        )
        rules += re.findall(r"raise_rule\('\w+', '(\w+)'()()\)", source)
        # The rule of a neighbour that is elsewhere: after_known or before_known.
        rules += [
            (f"{side}{ending}", "", "")
            for ending in re.findall(r"side \|\| '(\w+)'", source)
            for side in ("after", "before")
        ]
        for table in RAISING_FUNCTIONS[name]:
            yield from (f"ck_{table}_{''.join(rule)}" for rule in rules)


def test_every_key_and_index_begins_with_user_id():
    keys = [
        key
        for table in (*(resource.table for resource in RESOURCES), tables.idempotency_keys)
        for key in (table.primary_key, *table.foreign_key_constraints, *table.indexes)
    ]

    assert {next(iter(key.columns)).name for key in keys} == {"user_id"}


def test_database_and_python_strip_the_same_white_space():
    white_space = {chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()}

    escaped = re.findall(r"\\([0-9A-F]{4})", WHITE_SPACE)

    assert {chr(int(code, 16)) for code in escaped} == white_space


def test_every_operation_documents_its_errors(app):
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
            # A 412 holds the resource: Problem412Task.
            reference = operation["responses"][status]["$ref"]
            assert re.fullmatch(f"#/components/responses/Problem{status}[A-Za-z]*", reference)


def test_every_route_is_documented(app):
    documented = set(document(app)["paths"])
    routes = {
        re.sub("<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()
    }

    assert {
        route for route in routes if not route.startswith(("/docs", "/openapi.json", "/problems/"))
    } == documented


def test_docstring_of_every_documented_view_begins_with_a_sentence(app):
    for endpoint, view in app.view_functions.items():
        if operation_of(view).is_documented:
            assert re.match(r"[A-Z].*\.$", inspect.getdoc(view).splitlines()[0]), endpoint


def document(app):
    return app.test_client().get("/openapi.json").json
