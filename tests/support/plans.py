"""Query plans of the application's statements, as PostgreSQL runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from todo_api.db.database import ACT_AS_OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg

    from todo_api.db.statement import Statement

EXPLAIN = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE statement ({})")


def explain_statement(
    connection: psycopg.Connection,
    statement: Statement,
    values: Mapping[str, Any],
    plan_cache_mode: str | None = None,
) -> dict[str, Any]:
    """Run the statement as the application does, as `values["owner"]`; return the plan's root.

    `plan_cache_mode` overrides the application's setting. Changes of the statement are rolled back.
    """
    arguments = sql.SQL(", ").join(sql.Literal(values[name]) for name in statement.names)
    settings = {
        "owner": values["owner"],
        "attempt": None,
        "max_tasks": None,
        "max_bytes": None,
        "timeout": "60000",
    }
    connection.execute("DEALLOCATE ALL")  # statements left by an earlier error
    with connection.transaction(force_rollback=True):
        connection.execute(ACT_AS_OWNER.sql, settings)
        if plan_cache_mode:
            connection.execute(f"SET LOCAL plan_cache_mode = {plan_cache_mode}")
        connection.execute(b"PREPARE statement AS " + statement.numbered)
        ((plan,),) = connection.execute(EXPLAIN.format(arguments)).fetchone()
    return plan["Plan"]


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the nodes of the plan, the root first."""
    yield plan
    for child in plan.get("Plans", []):
        yield from steps(child)
