"""The functions of the database for the rows of a resource. `make migration` generates them.

The function of the trigger completes each row before it is written. It takes the revision of the
change, writes the columns that follow from other columns, checks the rules, writes the JSON of the
row, and counts the row and its bytes.

Another function renders a row that has no stored JSON: rows of the time before migration 0010 have
none until the renewal. It is a function of the ids, because PostgreSQL prepares each expression of
a statement before it runs, and reads each column that is in one, also if it is never evaluated.

A rule is checked by this function and not by a CHECK constraint, because PostgreSQL parses each
CHECK constraint anew for every statement. The error is the same as for a CHECK constraint: SQLSTATE
23514 (check_violation) with the constraint's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_api.resources.representation import rendered_row

if TYPE_CHECKING:
    from todo_api.resources.resource import Resource

FUNCTION = """
    CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        broken_rule text;
    BEGIN
        NEW.revision := take_revision(NEW.user_id);
        IF current_setting('todo.renewal', true) IS DISTINCT FROM 'on' THEN
            NEW.updated_at := clock_timestamp();
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := NEW.updated_at;
            END IF;
            NEW.attempt := nullif(current_setting('todo.attempt', true), '')::uuid;
        END IF;
        IF NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL THEN
            NEW.deleted_with := NEW.revision;
        END IF;{derivations}{rules}
        NEW.json := {rendered};
        PERFORM change_usage(
            '{table}', NEW.user_id, NEW.revision,
            (NEW.deleted_at IS NULL)::int - (TG_OP = 'UPDATE' AND OLD.deleted_at IS NULL)::int,
            (NEW.deleted_at IS NOT NULL)::int - (OLD.deleted_at IS NOT NULL)::int,
            octet_length(NEW.json) - coalesce(octet_length(OLD.json), 0)
        );
        RETURN NEW;
    END
    $$
"""

RULES = """
        broken_rule := CASE{cases}
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;"""

JSON_FUNCTION = """
    CREATE OR REPLACE FUNCTION {name}(owner uuid, item_id uuid) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN (
            SELECT {rendered}
            FROM {table} AS item WHERE item.user_id = owner AND item.id = item_id
        );
    END
    $$
"""


def json_function_name(table: str) -> str:
    """Return the name of the function that renders a row of this table."""
    return f"{table}_json"


def json_function(resource: Resource) -> str:
    """Return the statement that creates the function which renders a row, or replaces it."""
    table = resource.table
    return JSON_FUNCTION.format(
        name=json_function_name(table.name),
        table=table.name,
        rendered=rendered_row(table, resource.field_names, "item"),
    )


def function_name(table: str) -> str:
    """Return the name of the trigger's function for the rows of this table."""
    return f"write_{table}_row"


def row_function(resource: Resource) -> str:
    """Return the statement that creates the function of the trigger, or replaces it."""
    rendered, *derivations = written_values(resource)
    cases = "".join(
        f"\n            WHEN NOT ({rule.condition}) THEN '{name}'"
        for name, rule in resource.rules_by_constraint.items()
    )
    return FUNCTION.format(
        name=function_name(resource.table.name),
        table=resource.table.name,  # TG_TABLE_NAME may be the name of a partition
        derivations="".join(f"\n        {derivation}" for derivation in derivations),
        rules=RULES.format(cases=cases) if cases else "",
        rendered=rendered,
    )


def written_values(resource: Resource) -> list[str]:
    """Return the parts of the trigger's function that depend on the members.

    These are the expression of the JSON, and the statements of the derived columns.
    """
    return [
        rendered_row(resource.table, resource.field_names, "NEW"),
        *(f"NEW.{column} := {value};" for column, value in resource.derivations.items()),
    ]
