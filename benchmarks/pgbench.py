"""PostgreSQL alone: this API's own statements by pgbench, each after the one that sets its user.

As the API sends them, in one pipeline that is one implicit transaction.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import psycopg
from load import LIMIT, VoidError

from todo_api.db.database import ACT_AS_OWNER_IN_TIME
from todo_api.resources.pages import list_statement
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from pathlib import Path

    from data import Data, Size

NAME = "PostgreSQL alone"

STATEMENTS = {
    "get": TASK.statements.find,
    "not_modified": TASK.statements.find,
    "list": list_statement(TASK),
    "create": TASK.statements.insert,
    "patch": TASK.statements.update(("title",), conditional=False),
    "complete": TASK.statements.update(("completed",), conditional=False),
}

# What stands for a parameter. pgbench's variables are the parameters of its prepared statements.
VALUES = {
    "owner": "('00000000-0000-4000-8000-' || lpad(:user, 12, '0'))",
    "id": "('01900000-0000-7000-8000-' || lpad(:task, 12, '0'))",
    "attempt": "uuidv7()",
    "elapsed": "NULL",
    "timeout": "'5000'",
    "rows": str(LIMIT + 1),
    "known": "'{}'",
    "new_title": "('Buy oat milk, change ' || :change)",
    "new_description": "'Two litres, and none with sugar in it.'",
    "new_completed": "(:change::int % 2 = 0)",
}


def script(operation: str, size: Size) -> str:
    values = VALUES | ({"id": "uuidv7()"} if operation == "create" else {})
    both = f"{ACT_AS_OWNER_IN_TIME.sql.decode()};\n{STATEMENTS[operation].sql.decode()};"
    filled = re.sub(r"%\((\w+)\)s", lambda found: values[found[1]], both).replace("%%", "%")
    # In a format of to_char, pgbench would take these for variables: \072 is a colon.
    filled = re.sub(r"'([^']*HH24:MI:SS[^']*)'", escaped, filled)
    return (
        f"\\set user random(1, {size.users})\n"
        f"\\set task (:user - 1) * {size.tasks_per_user} + random(1, {size.tasks_per_user})\n"
        "\\set change random(1, 1000000000)\n"
        f"\\startpipeline\n{filled}\n\\endpipeline\n"
    )


def escaped(literal: re.Match[str]) -> str:
    return "E'" + literal[1].replace(":", "\\072") + "'"


def rate(
    operation: str, data: Data, size: Size, folder: Path, *, seconds: int, clients: int
) -> float:
    """Transactions a second. Raises VoidError if one of them failed."""
    path = folder / f"{operation}.sql"
    path.write_text(script(operation, size))
    with psycopg.connect(data.url) as connection:
        found = connection.execute("SELECT setting FROM pg_config WHERE name = 'BINDIR'").fetchone()
    assert found
    options = ("-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds))
    ended = subprocess.run(
        [f"{found[0]}/pgbench", *options, "-f", path, data.url],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    tps = re.search(r"tps = ([\d.]+)", ended.stdout)
    if ended.returncode or tps is None or "failed transactions: 0 " not in ended.stdout:
        raise VoidError(f"pgbench, {operation}: {ended.stdout}{ended.stderr}")
    return float(tps[1])
