"""Compare this API with other frameworks and with upper bounds: `make bench`.

All systems are measured alternately in one run, on the same database. The report has the median
rate of each operation in requests/s, and the ratio of this API's rate to each other rate. The ratio
is the median of the ratios in each round, because noise of the machine affects a ratio less than a
rate.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import chart
import pgbench
from data import ROOT, WRITES, Size, migrated, write_tokens
from load import CONNECTIONS, InvalidMeasurementError, measure, require_wrk
from performance_page import replace_section, table
from systems import (
    ALL,
    ASYNCPG,
    BARE_FLASK,
    GUARANTEES,
    ONE_THREAD,
    PEERS,
    PYDANTIC,
    SQLMODEL,
    SYSTEMS,
    THIS_API,
    THREADS,
    WORKERS,
    check,
    install_peers,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from data import Data
    from systems import Server, System

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

# The target for the ratio of this API's rate to the rate of another system.
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
    # The contract: ahead on every operation, and level on lists.
    GUARANTEES.name: dict.fromkeys(ALL, 1.0),
    PYDANTIC.name: {"list": 1.0},
    BARE_FLASK.name: {"get": 0.65, "create": 0.55},
}


OWN = (THIS_API.name, ONE_THREAD.name)


@dataclass(frozen=True)
class Figures:
    """The rate of a system in requests/s, and the CPU time for each request in microseconds.

    `database_cpu` is that of PostgreSQL.
    """

    rate: float
    cpu: float = 0
    database_cpu: float = 0

    @property
    def all_cpu(self) -> float:
        return self.cpu + self.database_cpu


class Results:
    """The figures of each operation, system and round, and the invalid measurements."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], dict[int, Figures]] = {}
        self.invalid: list[str] = []

    def add(self, operation: str, name: str, number: int, figures: Figures) -> None:
        self._figures.setdefault((operation, name), {})[number] = figures

    def names(self, operation: str) -> list[str]:
        return [name for measured, name in self._figures if measured == operation]

    def operations(self) -> list[str]:
        return list(dict.fromkeys(operation for operation, _ in self._figures))

    def median(self, operation: str, name: str, figure: str) -> float:
        rounds = self._figures[operation, name].values()
        return statistics.median(getattr(round_, figure) for round_ in rounds)

    def ratio(
        self, operation: str, other: str, name: str = THIS_API.name, figure: str = "rate"
    ) -> float | None:
        """Return the ratio of the figure to the other's, or None without a common round."""
        rounds = self._figures.get((operation, name), {})
        other_rounds = self._figures.get((operation, other), {})
        common = rounds.keys() & other_rounds.keys()
        ratios = [
            getattr(rounds[number], figure) / getattr(other_rounds[number], figure)
            for number in common
        ]
        return statistics.median(ratios) if ratios else None


@dataclass(frozen=True)
class Run:
    """The settings of a run: operations, rounds, and seconds of each measurement."""

    data: Data
    folder: Path
    operations: Sequence[str]
    rounds: int
    seconds: int
    tokens: bool

    def results(self, systems: Sequence[System]) -> Results:
        """Start all systems, and measure each operation of each system in each round."""
        results = Results()
        with ExitStack() as stack:
            servers = []
            for system in systems:
                log = self.folder / f"{system.name}.log"
                server = serving(system, self.data.url, log, tokens=self.tokens)
                servers.append(stack.enter_context(server))
            for server in servers:
                self.data.reset(SIZE)
                check(server, self.data, tokens=self.tokens)
            # The first round warms up.
            for number in range(self.rounds + 1):
                first = number % len(servers)
                for operation in self.operations:
                    self.add_round(results, operation, number, servers[first:] + servers[:first])
        return results

    def add_round(
        self, results: Results, operation: str, number: int, servers: Sequence[Server]
    ) -> None:
        """Measure an operation of all systems. Round 0 is a warm-up, which does not count."""
        seconds = self.seconds if number else 1
        self.data.reset(SIZE)
        for server, figures in self.measure_all(operation, seconds, servers):
            name = server.system.name if server else pgbench.NAME
            if isinstance(figures, InvalidMeasurementError):
                results.invalid.append(f"{name}: {figures}")
            elif number:
                results.add(operation, name, number, figures)
            if WRITES[operation]:
                self.data.reset(SIZE)

    def measure_all(
        self, operation: str, seconds: int, servers: Sequence[Server]
    ) -> Iterator[tuple[Server | None, Figures | InvalidMeasurementError]]:
        """Yield the figures of each server, then, without a server, those of PostgreSQL alone."""
        for server in servers:
            if operation in server.system.operations:
                try:
                    yield server, self.measure(server, operation, seconds)
                except InvalidMeasurementError as error:
                    yield server, error
        if operation in pgbench.STATEMENTS and self.tokens:
            clients = WORKERS * THREADS
            try:
                rate = pgbench.rate(
                    operation, self.data, SIZE, self.folder, seconds=seconds, clients=clients
                )
                yield None, Figures(rate)
            except InvalidMeasurementError as error:
                yield None, error

    def measure(self, server: Server, operation: str, seconds: int) -> Figures:
        cpu_before, database_cpu_before = server.cpu(), self.data.cpu()
        measurement = measure(
            server.url,
            operation,
            self.data,
            SIZE,
            tokens=self.folder / "tokens" if self.tokens else None,
            seconds=seconds,
            writes=not server.system.is_upper_bound,
        )
        cpu, database_cpu = server.cpu() - cpu_before, self.data.cpu() - database_cpu_before
        microseconds = 1e6 / measurement.requests
        return Figures(measurement.rate, cpu * microseconds, database_cpu * microseconds)


def target_rows(results: Results) -> list[list[str]]:
    """Return a row for each target: the ratio with the default threads, and with one thread."""
    rows = []
    for name, targets in TARGETS.items():
        for operation, target in targets.items():
            ratios = [
                results.ratio(operation, name, system.name) for system in (THIS_API, ONE_THREAD)
            ]
            cells = [format_ratio(ratio, target) for ratio in ratios if ratio is not None]
            if cells:
                rows.append([name, TITLES[operation], f"{target:.2f}", *cells])
    return rows


def format_ratio(ratio: float, target: float) -> str:
    return f"{ratio:.2f}" if ratio >= target else f"**{ratio:.2f}, missed**"


def rate_table(results: Results, names: Sequence[str]) -> str:
    """Return a table of requests/s, with the ratio of this API's rate to each in parentheses."""
    rows = []
    for operation in results.operations():
        row = [TITLES[operation]]
        for name in names:
            if name not in results.names(operation):
                row.append("")
                continue
            ratio = results.ratio(operation, name)
            compared = f" ({ratio:.2f})" if ratio and name not in OWN else ""
            row.append(f"{results.median(operation, name, 'rate'):,.0f}{compared}")
        rows.append(row)
    title = "requests/s (in brackets: the rate of this API divided by this rate)"
    return table([title, *names], rows)


def cpu_table(results: Results, names: Sequence[str]) -> str:
    """Return a table of CPU times, with the ratio of each other system's to this API's."""
    rows = []
    for operation in results.operations():
        row = [TITLES[operation]]
        for name in names:
            if name not in results.names(operation):
                row.append("")
                continue
            cpu, database_cpu = (
                results.median(operation, name, figure) for figure in ("cpu", "database_cpu")
            )
            ratio = results.ratio(operation, THIS_API.name, name, "all_cpu")
            compared = f" ({ratio:.2f})" if ratio and name not in OWN else ""
            row.append(f"{cpu:,.0f} + {database_cpu:,.0f}{compared}")
        rows.append(row)
    title = (
        "µs of CPU for a request: of the system + of PostgreSQL "
        "(in brackets: the sum divided by the sum of this API)"
    )
    return table([title, *names], rows)


def machine(data: Data) -> str:
    """Return a description of the machine and the versions of all programs.

    Call it before the measurements, so that the load is the load by other programs.
    """
    cpu = re.search(r"model name\s*: (.*)", text_of(Path("/proc/cpuinfo")))
    model = cpu[1] if cpu else platform.machine()
    lock = (PEERS / "requirements.lock").read_text()
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", lock, re.MULTILINE))
    packages = [
        "fastapi",
        "sqlmodel",
        "asyncpg",
        "uvicorn",
        "flask",
        "flask-sqlalchemy",
        "gunicorn",
    ]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    npm = (PEERS / "fastify/package-lock.json").read_text()
    fastify = re.search(r'"node_modules/fastify": {\s+"version": "([\d.]+)"', npm)
    return (
        f"Date: {datetime.now(UTC).date()}. Load average of the machine before the measurements: "
        f"{os.getloadavg()[0]:.1f}. All programs, including wrk and PostgreSQL, shared "
        f"{os.cpu_count()} cores ({model}). "
        f"Versions: PostgreSQL {data.version()}, Python {platform.python_version()}, "
        f"Node {node.strip()[1:]}, Fastify {fastify[1] if fastify else ''}, "
        + ", ".join(f"{name} {versions[name]}" for name in packages)
    )


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def report(
    systems: Sequence[System], results: Results, without_tokens: Results | None, setup: str
) -> str:
    """Return the generated section of docs/performance.md."""
    names = [system.name for system in systems]
    parts = [setup, rate_table(results, [*names, pgbench.NAME])]
    own = [name for name in OWN if name in names]
    rows = target_rows(results)
    if rows:
        parts += [
            "Targets for the rate of this API divided by the rate of the other system:",
            table(["other system", "operation", "target: at least", *own], rows),
        ]
    parts.append(cpu_table(results, names))
    if without_tokens:
        with_database = [system.name for system in systems if not system.is_upper_bound]
        parts += ["The same requests without tokens:", rate_table(without_tokens, with_database)]
    invalid = results.invalid + (without_tokens.invalid if without_tokens else [])
    if invalid:
        reasons = "\n".join(f"- {reason}" for reason in invalid)
        parts.append(f"Invalid measurements, which do not count:\n\n{reasons}")
    return "\n\n".join(parts) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5, help="seconds of each measurement")
    parser.add_argument("--operations", nargs="+", choices=ALL, default=ALL)
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=[system.name for system in SYSTEMS],
        metavar="SYSTEM",
        help="the systems to compare this API with; all, unless given",
    )
    parser.add_argument("--only-tokens", action="store_true", help="skip the run without tokens")
    parser.add_argument("--write", action="store_true", help="write into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    require_wrk()
    install_peers()
    with tempfile.TemporaryDirectory() as name, migrated() as data:
        folder = Path(name)
        write_tokens(folder / "tokens", SIZE.users)
        setup = (
            f"The values are medians of {options.rounds} rounds of {options.seconds} s. "
            f"wrk used {CONNECTIONS} keep-alive connections. "
            f"There were {SIZE.users:,} users with {SIZE.tasks_per_user} tasks each. "
            f"Each system had {WORKERS} processes; gunicorn's processes had {THREADS} threads, "
            f"unless the name of the system says one thread. {machine(data)}."
        )
        run = Run(data, folder, options.operations, options.rounds, options.seconds, tokens=True)
        systems = [
            system
            for system in SYSTEMS
            if options.systems is None or system.name in (THIS_API.name, *options.systems)
        ]
        results = run.results(systems)
        without_tokens = None
        if not options.only_tokens:
            run = Run(
                data, folder, options.operations, options.rounds, options.seconds, tokens=False
            )
            without_tokens = run.results(
                [system for system in systems if not system.is_upper_bound]
            )
    text = report(systems, results, without_tokens, setup)
    print(text)
    if options.write:
        upper_bounds = {system.name for system in SYSTEMS if system.is_upper_bound}
        panels = {
            f"{TITLES[operation]}, requests/s": {
                name: results.median(operation, name, "rate")
                for name in (*(system.name for system in systems), pgbench.NAME)
                if name in results.names(operation)
            }
            for operation in results.operations()
        }
        grey = frozenset({*upper_bounds, pgbench.NAME})
        (ROOT / "docs/performance-peers.svg").write_text(chart.bars(panels, grey, columns=2))
        replace_section("make bench", text)
    if results.invalid or (without_tokens and without_tokens.invalid):
        sys.exit("Some measurements are invalid: see above.")


if __name__ == "__main__":
    main()
