"""Measure PostgreSQL's CPU time and WAL for each operation: `make bench-database`.

pgbench runs the statements of this API, with row-level security. The schema of the working tree is
compared with the schema and the statements of another Git revision, and with copies of the database
in which one thing is different. All variants are measured alternately. `full_page_writes` is off:
the WAL then does not depend on the time since the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pgbench
import psycopg
from compare import TITLES, machine
from data import ROOT, Size, migrated
from performance_page import replace_section, table
from sqlalchemy.dialects import postgresql

from todo_api.resources.representation import rendered_row
from todo_api.resources.row_function import row_function
from todo_api.tasks.fields import TASK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data import Data

SIZE = Size(users=200, tasks_per_user=60)
CLIENTS = 2

# The transactions of one measurement: half a second to a second of CPU.
TRANSACTIONS = {"get": 10_000, "list": 3_000}
TRANSACTIONS_OF_WRITES = 2_000

PATCH_TITLE = "patch_title"
TITLES_HERE = TITLES | {"patch": "patch, all members", PATCH_TITLE: "patch, only the title"}

READS = ("get", "list")
CHANGES = ("create", PATCH_TITLE, "patch", "complete")
# The changes that are measured with other indexes and constraints.
CHANGES_BY_SCHEMA = ("create", "complete")

NOW = "now"

# Run in the folder of another revision: fill the database, and print a script for each operation.
FILL_AND_PRINT_SCRIPTS = """
import json, sys
sys.path[:0] = [".", "benchmarks"]
import pgbench
from data import Data, Size
size = Size(*map(int, sys.argv[2:]))
Data(sys.argv[1], None).reset(size)
print(json.dumps({name: pgbench.script(name, size) for name in pgbench.STATEMENTS}))
"""


@dataclass
class Variant:
    """A database and a script for each operation. `count` is the number of earlier writes."""

    name: str
    url: str
    scripts: Mapping[str, str]
    count: int = 0


@dataclass
class Figures:
    """The CPU time in microseconds, and the bytes of WAL, of one transaction in each round."""

    cpu: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)


Results = dict[str, dict[str, Figures]]  # by operation and by variant


def scripts() -> dict[str, str]:
    """Return the scripts of the working tree."""
    title = [statement.sql.decode() for statement in TASK.statements.update(("title",))]
    settings = pgbench.ACT_AS_OWNER_WITH_TIMEOUT.sql.decode()
    return {
        **{name: pgbench.script(name, SIZE) for name in (*READS, "create", "patch", "complete")},
        PATCH_TITLE: pgbench.pipeline([settings, *title], pgbench.EXPRESSIONS, SIZE),
    }


def replace_json(script: str, expression: str) -> str:
    """Return the script with another expression for the JSON of a task."""
    stored = TASK.statements.json.compile(dialect=postgresql.dialect())
    escaped = pgbench.escape_formats(str(stored))
    assert escaped in script
    return script.replace(escaped, pgbench.escape_formats(expression))


def checks() -> list[str]:
    """Return the statements that make CHECK constraints of the rules in the trigger."""
    constraints = ", ".join(
        f"ADD CONSTRAINT {name} CHECK ({rule.condition.replace('NEW.', '')})"
        for name, rule in TASK.rules_by_constraint.items()
    )
    return [without_rules(), f"ALTER TABLE tasks {constraints}"]


def without_rules() -> str:
    """Return the statement that removes the rules from the trigger."""
    function = row_function(TASK)
    for name, rule in TASK.rules_by_constraint.items():
        condition = f"\n            WHEN NOT ({rule.condition}) THEN '{name}'"
        assert condition in function
        function = function.replace(condition, "")
    return function


def make_variants(data: Data) -> dict[str, Variant]:
    """Return the working tree's database, and a copy for each variant."""
    here = scripts()
    data.reset(SIZE)
    alterations = {
        "rules as CHECK constraints": checks(),
        "no rules": [without_rules()],
        "no foreign key": [f"ALTER TABLE tasks DROP CONSTRAINT {foreign_key(data.url)}"],
        **{
            f"no index {', '.join(column.name for column in index.columns)}": [
                f"DROP INDEX {index.name}"
            ]
            for index in sorted(TASK.table.indexes, key=lambda index: str(index.name))
        },
    }
    variants = {NOW: Variant(NOW, data.url, here)}
    for number, (name, statements) in enumerate(alterations.items()):
        with psycopg.connect(data.cluster.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE variant{number} TEMPLATE bench")
        url = data.cluster.url(f"variant{number}")
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
        variants[name] = Variant(name, url, {name: here[name] for name in CHANGES_BY_SCHEMA})
    rendered = rendered_row(TASK.table, TASK.field_names, "tasks")
    # A statement falls back to other JSON if a row is not yet renewed.
    for name, expression, operations in (
        ("no fallback", "tasks.json", here),
        ("fallback in the statement", f"coalesce(tasks.json, {rendered})", here),
        ("JSON built at each read", rendered, READS),
    ):
        replaced = {name: replace_json(here[name], expression) for name in operations}
        variants[name] = Variant(name, data.url, replaced)
    return variants


def foreign_key(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'tasks'::regclass AND contype = 'f'"
        ).fetchone()
    assert row
    return str(row[0])


def other_revision(data: Data, revision: str, stack: ExitStack) -> Variant:
    """Return a database with the schema and the members of another Git revision."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tree"
    git = ["git", "-C", ROOT, "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", folder, revision], check=True)
    stack.callback(subprocess.run, [*git, "remove", "--force", folder], check=True)
    url = data.cluster.create_database("other_revision")
    environ = os.environ | {"DATABASE_URL": url, "MIGRATION_DATABASE_URL": url}
    environ |= {"PYTHONPATH": str(folder)}
    migrate = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(migrate, cwd=folder, env=environ, check=True, capture_output=True)
    fill = [sys.executable, "-c", FILL_AND_PRINT_SCRIPTS, url, SIZE.users, SIZE.tasks_per_user]
    output = subprocess.run(
        [str(part) for part in fill], cwd=folder, env=environ, check=True, stdout=subprocess.PIPE
    ).stdout
    texts = json.loads(output)
    # Its patch may write fewer members.
    texts[PATCH_TITLE] = texts["patch"]
    return Variant(revision, url, {name: texts[name] for name in (*READS, *CHANGES)})


def measure(data: Data, variant: Variant, operation: str, path: Path) -> tuple[float, float]:
    """Return the CPU time in microseconds and the bytes of WAL of one transaction."""
    transactions = TRANSACTIONS.get(operation, TRANSACTIONS_OF_WRITES) // CLIENTS
    path.write_text(variant.scripts[operation])
    with psycopg.connect(variant.url, autocommit=True) as connection:
        if operation in CHANGES:
            connection.execute("VACUUM users, tasks")
        wal_before = wal_position(connection)
        cpu_before = data.cpu()
        pgbench.run(
            variant.url,
            path,
            clients=CLIENTS,
            limit=("-t", str(transactions)),
            first_count=variant.count,
        )
        cpu = data.cpu() - cpu_before
        wal = wal_position(connection) - wal_before
    if operation == "complete":
        variant.count += transactions
    total = transactions * CLIENTS
    return cpu / total * 1e6, wal / total


def wal_position(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row
    return int(row[0])


def measure_all(data: Data, variants: Sequence[Variant], rounds: int, folder: Path) -> Results:
    results: Results = defaultdict(lambda: defaultdict(Figures))
    for operation in (*READS, *CHANGES):
        measured = [variant for variant in variants if operation in variant.scripts]
        # The first round warms up.
        for number in range(rounds + 1):
            first = number % len(measured)
            for variant in measured[first:] + measured[:first]:
                cpu, wal = measure(data, variant, operation, folder / f"{operation}.sql")
                if number:
                    figures = results[operation][variant.name]
                    figures.cpu.append(cpu)
                    figures.wal.append(wal)
        print_operation(operation, results[operation])
    return results


def print_operation(operation: str, by_name: Mapping[str, Figures]) -> None:
    for name, figures in by_name.items():
        print(
            f"{operation:12} {name:45} {statistics.median(figures.cpu):7.0f} us"
            f" {ratio(by_name, name):6.2f} {statistics.median(figures.wal):7.0f} bytes",
            flush=True,
        )


def ratio(by_name: Mapping[str, Figures], name: str) -> float:
    """Return the CPU time compared with the working tree's: the median of the rounds' ratios."""
    pairs = zip(by_name[name].cpu, by_name[NOW].cpu, strict=True)
    return statistics.median(cpu / cpu_now for cpu, cpu_now in pairs)


def cpu_table(results: Results, names: Sequence[str]) -> str:
    """Return a table of the CPU time, with the ratio to the working tree's in brackets."""
    rows = []
    for operation, by_name in results.items():
        row = [TITLES_HERE[operation]]
        for name in names:
            if name not in by_name:
                row.append("")
                continue
            compared = "" if name == NOW else f" ({ratio(by_name, name):.2f})"
            row.append(f"{statistics.median(by_name[name].cpu):,.0f}{compared}")
        rows.append(row)
    head = "µs of PostgreSQL's CPU (in brackets: divided by the value now, in the same round)"
    return table([head, *names], rows)


def change_table(results: Results, names: Sequence[str]) -> str:
    """Return a table of the CPU time and the WAL of each change, with a row for each variant."""
    rows = []
    for name in names:
        row = [name]
        for operation in CHANGES:
            by_name = results[operation]
            if name not in by_name:
                row.append("")
                continue
            wal = statistics.median(by_name[name].wal)
            row.append(f"{ratio(by_name, name):.2f} / {wal:,.0f}")
        rows.append(row)
    return table(
        ["CPU divided by the CPU now / bytes of WAL", *map(TITLES_HERE.get, CHANGES)], rows
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revision", help="a Git revision to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = stack.enter_context(migrated({"full_page_writes": "off"}))
        setup = (
            f"The values are medians of {options.rounds} rounds. pgbench used {CLIENTS} clients, "
            f"{SIZE.users} users with {SIZE.tasks_per_user} tasks each. {machine(data)}."
        )
        variants = make_variants(data)
        if options.revision:
            variants[options.revision] = other_revision(data, options.revision, stack)
        results = measure_all(data, list(variants.values()), options.rounds, folder)
        read_names = [name for name in variants if name in results["get"]]
        text = "\n\n".join(
            (setup, cpu_table(results, read_names), change_table(results, list(variants))),
        )
    print(text)
    if options.write:
        replace_section("make bench-database", text + "\n")


if __name__ == "__main__":
    main()
