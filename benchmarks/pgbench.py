"""PostgreSQL alone: pgbench runs the statements of each operation after one that sets the owner.

pgbench sends them in one pipeline, which is one implicit transaction, as the API does.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import psycopg
from load import LIMIT, InvalidMeasurementError

from todo_api.db.database import ACT_AS_OWNER_WITH_TIMEOUT
from todo_api.resources.pages import list_statement
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from data import Data, Size

    from todo_api.db.statement import Statement

NAME = "PostgreSQL alone"

# The statements that each operation sends in one pipeline.
STATEMENTS: dict[str, Sequence[Statement]] = {
    "get": [TASK.statements.find],
    "not_modified": [TASK.statements.find],
    "list": [list_statement(TASK)],
    "create": [TASK.statements.insert.change],
    "patch": TASK.statements.update(("title",)),
    "complete": TASK.statements.update(("completed",)),
}

# The SQL expressions that replace the parameters of a statement. pgbench sends its variables as
# parameters of prepared statements.
EXPRESSIONS = {
    "owner": "('00000000-0000-4000-8000-' || lpad(:user, 12, '0'))",
    "id": "('01900000-0000-7000-8000-' || lpad(:task, 12, '0'))",
    "attempt": "uuidv7()",
    "elapsed": "NULL",
    "timeout": "'5000'",
    "match": "NULL",
    "none_match": "'{}'",
    "rows": str(LIMIT + 1),
    "client_revisions": "'{}'",
    "new_title": "('Buy oat milk, change ' || :change)",
    "new_description": "'Two litres, and none with sugar in it.'",
    "new_completed": "(:change::int % 2 = 0)",
    "new_priority": "'none'",
}


def script(operation: str, size: Size) -> str:
    expressions = EXPRESSIONS | ({"id": "uuidv7()"} if operation == "create" else {})
    statements = (ACT_AS_OWNER_WITH_TIMEOUT, *STATEMENTS[operation])
    sql = "\n".join(f"{statement.sql.decode()};" for statement in statements)
    sql = re.sub(r"%\((\w+)\)s", lambda match: expressions[match[1]], sql).replace("%%", "%")
    # pgbench would read the colons in a format of to_char as variables: \072 is a colon.
    sql = re.sub(r"'([^']*HH24:MI:SS[^']*)'", escape_colons, sql)
    return (
        f"\\set user random(1, {size.users})\n"
        f"\\set task (:user - 1) * {size.tasks_per_user} + random(1, {size.tasks_per_user})\n"
        "\\set change random(1, 1000000000)\n"
        f"\\startpipeline\n{sql}\n\\endpipeline\n"
    )


def escape_colons(literal: re.Match[str]) -> str:
    return "E'" + literal[1].replace(":", "\\072") + "'"


def rate(
    operation: str, data: Data, size: Size, folder: Path, *, seconds: int, clients: int
) -> float:
    """Return transactions per second. Raises InvalidMeasurementError if a transaction failed."""
    path = folder / f"{operation}.sql"
    path.write_text(script(operation, size))
    with psycopg.connect(data.url) as connection:
        row = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
    assert row
    options = ("-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds))
    process = subprocess.run(
        [f"{row[0]}/pgbench", *options, "-f", path, data.url],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    tps = re.search(r"tps = ([\d.]+)", process.stdout)
    if process.returncode or tps is None or "failed transactions: 0 " not in process.stdout:
        raise InvalidMeasurementError(f"pgbench, {operation}: {process.stdout}{process.stderr}")
    return float(tps[1])
