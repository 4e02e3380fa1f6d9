"""Measure PostgreSQL's CPU time and WAL for each operation: `make bench-database`.

This API's own statements run with row-level security, on one connection for each variant. A variant
is a copy of the database in which one thing is different, or the schema and the statements of
another Git revision. All variants run small batches in turn, so that other programs affect all of
them. The kernel counts the CPU time of each PostgreSQL process in nanoseconds, commits included.
`full_page_writes` is off: the WAL then does not depend on the time since the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from compare import TITLES, machine
from data import COMPLETED_EACH, ROOT, SENT_MEMBERS, Size, migrated, task_id, user_id
from load import LIMIT
from performance_page import replace_section, table
from pgbench import PATCHED, STATEMENTS
from sqlalchemy.dialects import postgresql
from uuid_utils.compat import uuid7

from todo_api.db.connection import Connection
from todo_api.db.database import ACT_AS_OWNER_WITH_TIMEOUT
from todo_api.db.statement import Statement
from todo_api.resources.items import new_values
from todo_api.resources.representation import rendered_row
from todo_api.resources.row_function import row_function
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from data import Data

SIZE = Size(users=200, tasks_per_user=60)
TASKS = SIZE.users * SIZE.tasks_per_user
STRIDE = 7919  # a prime that divides no number of tasks

PATCH_TITLE = "patch_title"
READS = ("get", "list")
# The changes that are measured with other indexes and constraints. They come first, because a patch
# makes the rows shorter, and then a completion writes less WAL.
CHANGES_BY_SCHEMA = ("create", "complete")
CHANGES = (*CHANGES_BY_SCHEMA, PATCH_TITLE, "patch")
TITLES_HERE = TITLES | {"patch": "patch, all members", PATCH_TITLE: "patch, only the title"}

# The transactions in a batch.
BATCH = {"get": 200, "list": 60}
BATCH_OF_CHANGES = 50

# A process of PostgreSQL can be slower than another one that does the same, so each variant gets a
# new process after this number of rounds.
ROUNDS_OF_PROCESS = 6

NOW = "now"

# Run in the folder of another revision: fill the database, and print the statements.
FILL_AND_PRINT_STATEMENTS = """
import json, sys
sys.path[:0] = [".", "benchmarks"]
import pgbench
from data import Data, Size
Data(sys.argv[1], None).reset(Size(*map(int, sys.argv[2:])))
print(json.dumps({
    name: [statement.sql.decode() for statement in (pgbench.ACT_AS_OWNER_WITH_TIMEOUT, *statements)]
    for name, statements in pgbench.STATEMENTS.items()
}))
"""


@dataclass
class Variant:
    """A database, and the statements of each operation. `count` is the number of completions."""

    name: str
    url: str
    statements: Mapping[str, Sequence[Statement]]
    count: int = 0


@dataclass
class Figures:
    """The CPU time in microseconds, and the bytes of WAL, of one transaction in each round."""

    cpu: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)


Results = dict[str, dict[str, Figures]]  # by operation and by variant


def current_statements() -> dict[str, list[Statement]]:
    """Return the statements of the working tree, in the order in which requests send them."""
    operations = {name: STATEMENTS[name] for name in (*READS, "create", "patch", "complete")}
    operations[PATCH_TITLE] = TASK.statements.update(("title",)).statements
    return {
        name: [ACT_AS_OWNER_WITH_TIMEOUT, *statements] for name, statements in operations.items()
    }


def replace_json(statement: Statement, expression: str) -> Statement:
    """Return the statement with another expression for the JSON of a task."""
    stored = str(TASK.statements.json.compile(dialect=postgresql.dialect()))
    return Statement(statement.sql.replace(stored.encode(), expression.encode()))


def without_rules() -> str:
    """Return the statement that removes the rules from the trigger's function."""
    function, number = re.subn(
        r"\n        broken_rule := .*?\n        END IF;", "", row_function(TASK), flags=re.DOTALL
    )
    assert number == 1
    return function


def constraints() -> str:
    """Return the statement that makes CHECK constraints of the rules."""
    added = ", ".join(
        f"ADD CONSTRAINT {name} CHECK ({rule.condition.replace('NEW.', '')})"
        for name, rule in TASK.rules_by_constraint.items()
    )
    return f"ALTER TABLE tasks {added}"


def make_variants(data: Data) -> list[Variant]:
    """Return the working tree's database, and a copy for each variant."""
    data.reset(SIZE)
    here = current_statements()
    changes = {name: here[name] for name in CHANGES_BY_SCHEMA}
    rendered = rendered_row(TASK.table, TASK.field_names, "tasks")
    variants = [
        Variant(NOW, data.url, here),
        *(
            copy(
                data,
                name,
                {
                    operation: [
                        replace_json(statement, expression) for statement in here[operation]
                    ]
                    for operation in operations
                },
            )
            for name, expression, operations in (
                ("no fallback", "tasks.json", here),
                ("fallback in the statement", f"coalesce(tasks.json, {rendered})", here),
                ("JSON built at each read", rendered, READS),
            )
        ),
        copy(data, "rules as CHECK constraints", changes, without_rules(), constraints()),
        copy(data, "no rules", changes, without_rules()),
        copy(
            data,
            "no foreign key",
            changes,
            *(
                f"ALTER TABLE tasks DROP CONSTRAINT {constraint.name}"
                for constraint in TASK.table.foreign_key_constraints
            ),
        ),
    ]
    for index in sorted(TASK.table.indexes, key=lambda index: str(index.name)):
        name = f"no index ({', '.join(column.name for column in index.columns)})"
        variants.append(copy(data, name, changes, f"DROP INDEX {index.name}"))
    return variants


def copy(
    data: Data, name: str, statements: Mapping[str, Sequence[Statement]], *alterations: str
) -> Variant:
    """Return a variant with a copy of the database, after these alterations."""
    database = f"copy_{uuid7().hex}"
    with psycopg.connect(data.cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database} TEMPLATE bench")
    url = data.cluster.url(database)
    with psycopg.connect(url, autocommit=True) as connection:
        for alteration in alterations:
            connection.execute(alteration)
    return Variant(name, url, statements)


def other_revision(data: Data, revision: str, stack: ExitStack) -> Variant:
    """Return a database with the schema and the statements of another Git revision."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tree"
    git = ["git", "-C", ROOT, "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", folder, revision], check=True)
    stack.callback(subprocess.run, [*git, "remove", "--force", folder], check=True)
    url = data.cluster.create_database("other_revision")
    environ = os.environ | {"DATABASE_URL": url, "MIGRATION_DATABASE_URL": url}
    environ |= {"PYTHONPATH": str(folder)}
    migrate = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(migrate, cwd=folder, env=environ, check=True, capture_output=True)
    size = (str(SIZE.users), str(SIZE.tasks_per_user))
    fill = [sys.executable, "-c", FILL_AND_PRINT_STATEMENTS, url, *size]
    output = subprocess.run(fill, cwd=folder, env=environ, check=True, stdout=subprocess.PIPE)
    texts = json.loads(output.stdout)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # no triggers
        connection.execute(
            "UPDATE tasks SET completed = right(id::text, 12)::bigint %% %s = 0", (COMPLETED_EACH,)
        )
        connection.execute("VACUUM ANALYZE tasks")
    # Its patch may send the title only.
    texts[PATCH_TITLE] = texts["patch"]
    statements = {
        name: [Statement(sql.encode()) for sql in texts[name]]
        for name in (*READS, "create", PATCH_TITLE, "complete")
    }
    return Variant(revision, url, statements)


class Parameters:
    """The parameters of the statements: those that a request would have."""

    def __init__(self) -> None:
        sent = {
            name: TASK.stored_fields[name].deserialize(value)
            for name, value in SENT_MEMBERS.items()
        }
        self._patch = new_values(TASK, {name: sent[name] for name in PATCHED})
        new = dict.fromkeys(("completed_at", "list_id", "parent_id")) | {"completed": False}
        self._create = new_values(TASK, sent | new)
        self._count = 0

    def next(self, operation: str, variant: Variant) -> dict[str, Any]:
        """Return the parameters of the next transaction, which changes what it writes."""
        self._count += 1
        number = variant.count if operation == "complete" else self._count
        task = number * STRIDE % TASKS + 1
        parameters = self._create if operation == "create" else self._patch
        parameters = parameters | {
            "owner": UUID(user_id((task - 1) // SIZE.tasks_per_user + 1)),
            "id": uuid7() if operation == "create" else UUID(task_id(task)),
            "attempt": str(uuid7()),
            "elapsed": None,
            "timeout": "5000",
            "max_tasks": "10000000",
            "max_bytes": str(2**40),
            "match": None,
            "none_match": [],
            "rows": LIMIT + 1,
            "client_revisions": [],
            "new_title": f"Buy oat milk, change {self._count}",
        }
        if operation == "complete":
            # First each task becomes what it was not, then what it was at the start, and so on.
            was_completed = task % COMPLETED_EACH == 0
            parameters["new_completed"] = was_completed == (number // TASKS % 2 == 1)
            variant.count += 1
        return parameters


@dataclass(frozen=True)
class Session:
    """A connection to a variant's database, and the id of its process of PostgreSQL."""

    variant: Variant
    connection: Connection
    process: int

    def cpu(self) -> int:
        """Return the CPU time of the process in nanoseconds."""
        return int(Path(f"/proc/{self.process}/schedstat").read_text().split()[0])

    def run(self, operation: str, parameters: Parameters, number: int) -> float:
        """Run transactions of the operation; return the microseconds of CPU for each."""
        statements = self.variant.statements[operation]
        cpu_before = self.cpu()
        for _ in range(number):
            values = parameters.next(operation, self.variant)
            _, *rows = self.connection.transact(statements, values, time.monotonic() + 60)
            assert rows[0], f"{self.variant.name}: {operation} found or changed nothing"
        return (self.cpu() - cpu_before) / number / 1000


def open_session(variant: Variant, stack: ExitStack) -> Session:
    connection = Connection.connect(variant.url, autocommit=True)
    stack.enter_context(closing(connection))
    connection.set_up(prepares=True)
    return Session(variant, connection, connection.info.backend_pid)


def measure_all(data: Data, variants: Sequence[Variant], rounds: int) -> Results:
    results: Results = defaultdict(lambda: defaultdict(Figures))
    parameters = Parameters()
    for operation in (*READS, *CHANGES):
        for first in range(0, rounds, ROUNDS_OF_PROCESS):
            numbers = range(first, min(first + ROUNDS_OF_PROCESS, rounds))
            add_rounds(results[operation], data, variants, operation, parameters, numbers)
        for name in results[operation]:
            print(f"{operation:12} {name:45} {format_cpu(results[operation], name)}", flush=True)
    return results


def add_rounds(
    by_name: dict[str, Figures],
    data: Data,
    variants: Sequence[Variant],
    operation: str,
    parameters: Parameters,
    rounds: Iterable[int],
) -> None:
    """Measure an operation in these rounds, with new processes of PostgreSQL."""
    batch = BATCH.get(operation, BATCH_OF_CHANGES)
    with ExitStack() as stack:
        administration = stack.enter_context(psycopg.connect(data.cluster.url(), autocommit=True))
        sessions = [
            open_session(variant, stack) for variant in variants if operation in variant.statements
        ]
        for session in sessions:
            session.run(operation, parameters, batch)  # warms up
        for number in rounds:
            first = number % len(sessions)
            for session in sessions[first:] + sessions[:first]:
                wal_before = wal_position(administration)
                cpu = session.run(operation, parameters, batch)
                figures = by_name[session.variant.name]
                figures.cpu.append(cpu)
                figures.wal.append((wal_position(administration) - wal_before) / batch)


def wal_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row
    return int(row[0])


def format_cpu(by_name: Mapping[str, Figures], name: str) -> str:
    """Return the CPU time, in brackets its ratio to that of the working tree, and the WAL."""
    figures = by_name[name]
    cpu = first_quartile(figures.cpu)
    compared = "" if name == NOW else f" ({cpu / first_quartile(by_name[NOW].cpu):.2f})"
    wal = statistics.median(figures.wal)
    return f"{cpu:,.0f}{compared}" + (f" / {wal:,.0f}" if wal else "")


def first_quartile(values: Sequence[float]) -> float:
    """Return a value that a quarter of the values are below.

    Other programs only add to the CPU time, because they empty the caches of the cores. So a low
    value says more than the median.
    """
    return statistics.quantiles(values, n=4)[0]


def result_table(results: Results, operations: Sequence[str], names: Sequence[str]) -> str:
    rows = []
    for name in names:
        measured = [results[operation] for operation in operations]
        cells = [format_cpu(by_name, name) if name in by_name else "" for by_name in measured]
        if any(cells):
            rows.append([name, *cells])
    head = "µs of CPU (divided by the value now)"
    if set(operations) <= set(CHANGES):
        head += " / bytes of WAL"
    return table([head, *(TITLES_HERE[operation] for operation in operations)], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revision", help="a Git revision to compare with")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="write into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with ExitStack() as stack:
        data = stack.enter_context(migrated({"full_page_writes": "off"}))
        setup = (
            f"The CPU times are first quartiles of {options.rounds} rounds, the bytes of WAL are "
            f"medians. There were {SIZE.users} users with {SIZE.tasks_per_user} tasks each. "
            f"{machine(data)}."
        )
        variants = make_variants(data)
        if options.revision:
            variants.insert(1, other_revision(data, options.revision, stack))
        results = measure_all(data, variants, options.rounds)
    names = [variant.name for variant in variants]
    tables = [result_table(results, operations, names) for operations in (READS, CHANGES)]
    text = "\n\n".join((setup, *tables)) + "\n"
    print(text)
    if options.write:
        replace_section("make bench-database", text)


if __name__ == "__main__":
    main()
