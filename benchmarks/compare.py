"""Peers and limits beside this API, in turns, in one run: `make bench`.

Requests/s of each operation over the same database, medians of some rounds, and this API's share
of each other contender: the median of the rounds' ratios, which the machine's own ups and downs
reach less than they do a rate.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import chart
import pgbench
from contenders import (
    ALL,
    ASYNCPG,
    BARE_FLASK,
    CONTENDERS,
    ONE_THREAD,
    OURS,
    PEERS,
    SQLMODEL,
    THREADS,
    WORKERS,
    check,
    install_peers,
    serving,
)
from data import ROOT, WRITES, Size, migrated, write_tokens
from document import replace_section, table
from load import CONNECTIONS, VoidError, measure, require_wrk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from contenders import Contender, Server
    from data import Data

SIZE = Size(users=1000, tasks_per_user=60)

TITLES = {
    "get": "get one",
    "list": "list 50",
    "not_modified": "get one, 304",
    "create": "create",
    "patch": "patch",
    "complete": "complete",
    "delete": "delete",
    "mix": "mix, 70 % reads",
}

# What this API's requests/s have to be, as a share of another contender's.
TARGETS = {
    SQLMODEL.name: {
        "get": 2.0,
        "list": 3.0,
        "create": 2.5,
        "patch": 2.5,
        "complete": 2.5,
        "mix": 2.5,
    },
    ASYNCPG.name: {"list": 1.3, "mix": 1.0, "get": 0.75, "create": 0.75, "complete": 0.75},
    BARE_FLASK.name: {"get": 0.65, "create": 0.55},
}


OWN = (OURS.name, ONE_THREAD.name)


@dataclass(frozen=True)
class Cell:
    """One contender's turn: requests/s, and microseconds of its CPU for each request."""

    rate: float
    cpu: float


class Results:
    """The cells of each operation and contender, by round, and what was void."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], dict[int, Cell]] = {}
        self.void: list[str] = []

    def add(self, operation: str, name: str, number: int, cell: Cell) -> None:
        self._cells.setdefault((operation, name), {})[number] = cell

    def names(self, operation: str) -> list[str]:
        return [name for of, name in self._cells if of == operation]

    def operations(self) -> list[str]:
        return list(dict.fromkeys(operation for operation, _ in self._cells))

    def rate(self, operation: str, name: str) -> float:
        return statistics.median(cell.rate for cell in self._cells[operation, name].values())

    def cpu(self, operation: str, name: str) -> float:
        return statistics.median(cell.cpu for cell in self._cells[operation, name].values())

    def ratio(self, operation: str, other: str, of: str = OURS.name) -> float | None:
        """What share of the other's rate this API's is, or None if they share no round."""
        ours = self._cells.get((operation, of), {})
        theirs = self._cells.get((operation, other), {})
        ratios = [ours[at].rate / theirs[at].rate for at in ours.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None


@dataclass(frozen=True)
class Run:
    """What is measured, for how long and how often."""

    data: Data
    folder: Path
    operations: Sequence[str]
    rounds: int
    seconds: int
    tokens: bool

    def results(self, contenders: Sequence[Contender]) -> Results:
        """Serve all of them, and give each its turn of each operation in each round."""
        results = Results()
        with ExitStack() as stack:
            servers = []
            for contender in contenders:
                log = self.folder / f"{contender.name}.log"
                server = serving(contender, self.data.url, log, tokens=self.tokens)
                servers.append(stack.enter_context(server))
            for server in servers:
                self.data.reset(SIZE)
                check(server, self.data, tokens=self.tokens)
            # The first round warms up.
            for number in range(self.rounds + 1):
                first = number % len(servers)
                for operation in self.operations:
                    self.turns(results, operation, number, servers[first:] + servers[:first])
        return results

    def turns(
        self, results: Results, operation: str, number: int, servers: Sequence[Server]
    ) -> None:
        seconds = self.seconds if number else 1
        self.data.reset(SIZE)
        for server, cell in self.cells(operation, seconds, servers):
            name = server.contender.name if server else pgbench.NAME
            if isinstance(cell, VoidError):
                results.void.append(f"{name}: {cell}")
            elif number:
                results.add(operation, name, number, cell)
            if WRITES[operation]:
                self.data.reset(SIZE)

    def cells(
        self, operation: str, seconds: int, servers: Sequence[Server]
    ) -> Iterator[tuple[Server | None, Cell | VoidError]]:
        for server in servers:
            if operation in server.contender.operations:
                try:
                    yield server, self.cell(server, operation, seconds)
                except VoidError as error:
                    yield server, error
        if operation in pgbench.STATEMENTS and self.tokens:
            clients = WORKERS * THREADS
            try:
                rate = pgbench.rate(
                    operation, self.data, SIZE, self.folder, seconds=seconds, clients=clients
                )
                yield None, Cell(rate, 0)
            except VoidError as error:
                yield None, error

    def cell(self, server: Server, operation: str, seconds: int) -> Cell:
        before = server.cpu()
        measured = measure(
            server.url,
            operation,
            self.data,
            SIZE,
            tokens=self.folder / "tokens" if self.tokens else None,
            seconds=seconds,
            writes=not server.contender.limit,
        )
        return Cell(measured.rate, (server.cpu() - before) / measured.requests * 1e6)


def verdicts(results: Results) -> list[list[str]]:
    """A row for each target: reached or not, with as many threads as by default and with one."""
    rows = []
    for name, of_operation in TARGETS.items():
        for operation, least in of_operation.items():
            ratios = [results.ratio(operation, name, of.name) for of in (OURS, ONE_THREAD)]
            found = [verdict(ratio, least) for ratio in ratios if ratio is not None]
            if found:
                rows.append([name, TITLES[operation], f"{least:.2f}", *found])
    return rows


def verdict(ratio: float, least: float) -> str:
    return f"{ratio:.2f}" if ratio >= least else f"**{ratio:.2f}, missed**"


def rates(results: Results, names: Sequence[str]) -> str:
    """Requests/s, and in parentheses this API's share of the other's."""
    rows = []
    for operation in results.operations():
        row = [TITLES[operation]]
        for name in names:
            if name not in results.names(operation):
                row.append("")
                continue
            ratio = results.ratio(operation, name)
            share = f" ({ratio:.2f})" if ratio and name not in OWN else ""
            row.append(f"{results.rate(operation, name):,.0f}{share}")
        rows.append(row)
    return table(["requests/s (rate of this API / rate of this contender)", *names], rows)


def costs(results: Results, names: Sequence[str]) -> str:
    rows = [
        [TITLES[operation]]
        + [
            f"{results.cpu(operation, name):,.0f}" if name in results.names(operation) else ""
            for name in names
        ]
        for operation in results.operations()
    ]
    return table(["µs of CPU for a request", *names], rows)


def machine(data: Data) -> str:
    """What it was measured on."""
    cpu = re.search(r"model name\s*: (.*)", text_of(Path("/proc/cpuinfo")))
    model = cpu[1] if cpu else platform.machine()
    lock = (PEERS / "requirements.lock").read_text()
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", lock, re.MULTILINE))
    named = ["fastapi", "sqlmodel", "asyncpg", "uvicorn", "flask", "flask-sqlalchemy", "gunicorn"]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    npm = (PEERS / "fastify/package-lock.json").read_text()
    fastify = re.search(r'"node_modules/fastify": {\s+"version": "([\d.]+)"', npm)
    return (
        f"{os.cpu_count()} cores ({model}) shared by all of them, including wrk and PostgreSQL; "
        f"PostgreSQL {data.version()}, Python {platform.python_version()}, "
        f"Node {node.strip()[1:]}, Fastify {fastify[1] if fastify else ''}, "
        + ", ".join(f"{name} {versions[name]}" for name in named)
    )


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def report(results: Results, opened: Results | None, setup: str) -> str:
    """The whole section of docs/performance.md."""
    names = [contender.name for contender in CONTENDERS]
    parts = [setup, rates(results, [*names, pgbench.NAME])]
    rows = verdicts(results)
    if rows:
        parts.append(table(["compared with", "operation", "target", *OWN], rows))
    parts.append(costs(results, names))
    if opened:
        with_database = [contender.name for contender in CONTENDERS if not contender.limit]
        parts += ["Without tokens on either side:", rates(opened, with_database)]
    void = results.void + (opened.void if opened else [])
    if void:
        listed = "\n".join(f"- {reason}" for reason in void)
        parts.append(f"Void cells, which are counted nowhere:\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="of each cell")
    parser.add_argument("--operations", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--only-tokens", action="store_true", help="not once more without them")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    require_wrk()
    install_peers()
    with tempfile.TemporaryDirectory() as name, migrated() as data:
        folder = Path(name)
        write_tokens(folder / "tokens", SIZE.users)
        run = Run(data, folder, given.operations, given.rounds, given.seconds, tokens=True)
        results = run.results(CONTENDERS)
        opened = None
        if not given.only_tokens:
            run = Run(data, folder, given.operations, given.rounds, given.seconds, tokens=False)
            opened = run.results([contender for contender in CONTENDERS if not contender.limit])
        setup = (
            f"{given.rounds} rounds of {given.seconds} s for each cell, medians; {CONNECTIONS} "
            f"keep-alive connections, {SIZE.users:,} users with {SIZE.tasks_per_user} tasks each; "
            f"{WORKERS} processes, gunicorn's with {THREADS} threads each. {machine(data)}."
        )
    text = report(results, opened, setup)
    print(text)
    if given.write:
        limits = frozenset(each.name for each in CONTENDERS if each.limit) | {pgbench.NAME}
        panels = {
            f"{TITLES[operation]}, requests/s": {
                name: results.rate(operation, name)
                for name in (*(each.name for each in CONTENDERS), pgbench.NAME)
                if name in results.names(operation)
            }
            for operation in results.operations()
        }
        (ROOT / "docs/performance-peers.svg").write_text(chart.bars(panels, limits, columns=2))
        replace_section("make bench", text)
    if results.void or (opened and opened.void):
        sys.exit("Some cells are void: see above.")


if __name__ == "__main__":
    main()
