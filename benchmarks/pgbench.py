"""PostgreSQL alone: pgbench runs the statements of each operation after one that sets the owner.

pgbench sends them in one pipeline, which is one implicit transaction, as the API does.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import psycopg
from data import COMPLETED_EACH
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

# A patch writes all members but these, as the load of wrk does.
KEPT = {"completed", "completed_at", "list_id", "parent_id"}
PATCHED = tuple(sorted({*TASK.writable_names} - KEPT))

# The statements that each operation sends in one pipeline.
STATEMENTS: dict[str, Sequence[Statement]] = {
    "get": [TASK.statements.find],
    "not_modified": [TASK.statements.find],
    "list": [list_statement(TASK)],
    "create": [TASK.statements.insert.change],
    "patch": TASK.statements.update(PATCHED).statements,
    "complete": TASK.statements.update(("completed",)).statements,
}

# The SQL expressions that replace the parameters of a statement. pgbench sends its variables as
# parameters of prepared statements. The times have no colons, which would begin variables.
EXPRESSIONS = {
    "owner": "('00000000-0000-4000-8000-' || lpad(:user, 12, '0'))",
    "id": "('01900000-0000-7000-8000-' || lpad(:task, 12, '0'))",
    "attempt": "uuidv7()",
    "elapsed": "NULL",
    "timeout": "'5000'",
    "max_tasks": "'10000000'",
    "max_bytes": "'1000000000000'",
    "match": "NULL",
    "none_match": "'{}'",
    "rows": str(LIMIT + 1),
    "client_revisions": "'{}'",
    "new_title": "('Buy oat milk, change ' || :change)",
    "new_description": "'Two litres, and none with sugar in it.'",
    "new_completed": "(:completed::int = 1)",
    "new_completed_at": "NULL",
    "new_priority": "'high'",
    "new_labels": "'{errand,shop}'",
    "new_label_keys": "'{errand,shop}'",
    "new_due_date": "'2026-11-21'",
    "new_due_time": "'093000'",
    "new_time_zone": "'Europe/Berlin'",
    "new_due_at": "'2026-11-21 083000Z'",
    "new_start_date": "'2026-11-20'",
    "new_list_id": "NULL",
    "new_parent_id": "NULL",
    "patch_metadata": """('{"source": "mail", "thread": "change-' || :change || '"}')""",
    "new_metadata": """'{"source": "mail", "thread": "message"}'""",
}

# Successive transactions of all clients take the tasks in turn, so `complete` always changes the
# task: first each completed task is set to not completed and each other one to completed, then
# back. The variables `count` and `clients` come from the command line; 7919 divides no number of
# tasks.
VARIABLES = """
\\set number :count * :clients + :client_id
\\set count :count + 1
\\set task :number * 7919 % {tasks} + 1
\\set user (:task - 1) / {tasks_per_user} + 1
\\set is_completed CASE WHEN :task % {completed_each} = 0 THEN 1 ELSE 0 END
\\set completed (:number / {tasks} + :is_completed + 1) % 2
\\set change random(1, 1000000000)
"""


def script(operation: str, size: Size) -> str:
    """Return the script of an operation, whose transaction is one pipeline."""
    expressions = EXPRESSIONS
    if operation == "create":
        expressions = expressions | {"id": "uuidv7()", "new_completed": "false"}
    statements = (ACT_AS_OWNER_WITH_TIMEOUT, *STATEMENTS[operation])
    sql = "\n".join(f"{statement.sql.decode()};" for statement in statements)
    sql = re.sub(r"%\((\w+)\)s", lambda match: expressions[match[1]], sql).replace("%%", "%")
    variables = VARIABLES.format(
        tasks=size.users * size.tasks_per_user,
        tasks_per_user=size.tasks_per_user,
        completed_each=COMPLETED_EACH,
    )
    return f"{variables}\\startpipeline\n{escape_formats(sql)}\n\\endpipeline\n"


def escape_formats(sql: str) -> str:
    r"""Replace the colons in the formats of to_char, which pgbench would read as variables."""
    return re.sub(
        r"'([^']*HH24:MI:SS[^']*)'",
        lambda literal: "E'" + literal[1].replace(":", "\\072") + "'",
        sql,
    )


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
    variables = ("-D", "count=0", "-D", f"clients={clients}")
    process = subprocess.run(
        [f"{row[0]}/pgbench", *options, *variables, "-f", path, data.url],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    tps = re.search(r"tps = ([\d.]+)", process.stdout)
    if process.returncode or tps is None or "failed transactions: 0 " not in process.stdout:
        raise InvalidMeasurementError(f"pgbench, {operation}: {process.stdout}{process.stderr}")
    return float(tps[1])
