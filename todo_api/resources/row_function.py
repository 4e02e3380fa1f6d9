"""The functions of the database for the rows of a resource. `make migration` generates them.

The function of the trigger completes each row before it is written. It writes the columns that
follow from other columns, checks the rules, and writes the JSON of the row.

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
        IF NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL THEN
            NEW.deleted_with := NEW.revision;
        END IF;{derivations}
        broken_rule := CASE
            WHEN NOT (NEW.revision > 0) THEN 'ck_{table}_revision_positive'{rules}
        END;
        IF broken_rule IS NOT NULL THEN
            RAISE EXCEPTION USING
                ERRCODE = '23514', CONSTRAINT = broken_rule, TABLE = TG_TABLE_NAME,
                MESSAGE = 'a row violates the rule ' || broken_rule;
        END IF;
        NEW.json := {rendered};
        RETURN NEW;
    END
    $$
"""

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
    table = resource.table
    return FUNCTION.format(
        name=function_name(table.name),
        table=table.name,
        derivations="".join(
            f"\n        NEW.{column} := {expression};"
            for column, expression in resource.derivations.items()
        ),
        rules="".join(
            f"\n            WHEN NOT ({rule.condition}) THEN '{name}'"
            for name, rule in resource.rules_by_constraint.items()
        ),
        rendered=rendered_row(table, resource.field_names, "NEW"),
    )
