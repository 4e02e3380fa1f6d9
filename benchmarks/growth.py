"""How this API holds out as things grow: `make bench-growth`.

Requests/s and p99 with more tasks of one user, more tasks in all, more clients and a database that
is further away; and what a worker's memory comes to. One part: `make bench-growth ARGS=clients`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import chart
from compare import TITLES, machine
from contenders import OURS, THREADS, WORKERS, serving
from data import ROOT, WRITES, Size, migrated, write_tokens
from delay import delayed, round_trip
from document import replace_section, table
from load import CONNECTIONS, VoidError, measure, require_wrk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from contenders import Server
    from data import Data
    from load import Measured

USERS = 10_000
OPERATIONS = ("get", "list", "create", "patch")

CLIENTS = (1, 2, 5, 10, 20, 50, 100, 200)
MANY_CLIENTS, P95 = 100, 200  # milliseconds that 95 of a hundred requests of so many may take
FAR, FAR_THREADS, FAR_RATE = 20, 8, 300  # milliseconds; threads a worker; requests/s at least
EACH = 100  # tasks of each user, where there are many
OF_ONE, IN_ALL = 1.5, 1.3  # times the cost of a request, at most
WORKER_MB, GROWTH_MB = 80, 4  # at most, for a worker; and from the second tenth of a load on


@dataclass(frozen=True)
class Section:
    """What a part has found: a title, a table, a chart, and which targets were met."""

    title: str
    table: str
    panels: Sequence[chart.Lines]
    verdicts: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True)
class Bench:
    """What every part measures with."""

    data: Data
    folder: Path
    seconds: int
    requests: int
    void: list[str]

    @contextmanager
    def serving(
        self, size: Size, *, url: str = "", threads: int = THREADS, recycle: bool = True
    ) -> Iterator[Server]:
        """Serve this API with a database of this size, and a token for each of its users."""
        self.data.reset(size)
        write_tokens(self.folder / "tokens", size.users)
        options = () if recycle else ("--max-requests", "0")
        ours = replace(OURS, command=(*OURS.command, *options))
        log = self.folder / "log"
        with serving(
            ours, url or self.data.url, log, tokens=True, workers=WORKERS, threads=threads
        ) as server:
            yield server

    def measure(
        self,
        server: Server,
        operation: str,
        size: Size,
        connections: int = CONNECTIONS,
        seconds: int | None = None,
    ) -> Measured | None:
        """A cell, on a database that is as it was before the first one; None if it is void."""
        try:
            return measure(
                server.url,
                operation,
                self.data,
                size,
                tokens=self.folder / "tokens",
                seconds=seconds or self.seconds,
                connections=connections,
            )
        except VoidError as error:
            self.void.append(f"{error}, with {connections} clients")
            return None
        finally:
            if WRITES[operation]:
                self.data.reset(size)

    def warm(self, server: Server, size: Size) -> None:
        """Let each worker have connected, and have verified the tokens that it will see."""
        for operation in OPERATIONS:
            self.measure(server, operation, size, seconds=1)
        self.measure(server, "get", size, seconds=2 * self.seconds)


Cells = dict[str, dict[float, "Measured | None"]]


def shown(cells: Cells, over: str) -> str:
    """A table of requests/s and p99 with a row for each x."""
    xs = sorted({x for of in cells.values() for x in of})
    rows = [[f"{x:,.10g}", *(shown_cell(of[x]) for of in cells.values())] for x in xs]
    return table([f"{over} (requests/s / p99)", *(TITLES[name] for name in cells)], rows)


def shown_cell(measured: Measured | None) -> str:
    return f"{measured.rate:,.0f} / {measured.p99:,.1f} ms" if measured else "void"


def panels(cells: Cells, over: str, *, log: bool = True) -> list[chart.Lines]:
    values: Mapping[str, Callable[[Measured], float]] = {
        "requests/s": lambda measured: measured.rate,
        "p99, ms": lambda measured: measured.p99,
    }
    return [
        chart.Lines(
            title,
            over,
            {
                TITLES[name]: [
                    (x, value(measured)) for x, measured in sorted(of.items()) if measured
                ]
                for name, of in cells.items()
            },
            log,
        )
        for title, value in values.items()
    ]


def over_sizes(bench: Bench, sizes: Mapping[float, Size], operations: Sequence[str]) -> Cells:
    cells: Cells = {name: {} for name in operations}
    for x, size in sizes.items():
        with bench.serving(size) as server:
            bench.warm(server, size)
            for name in operations:
                cells[name][x] = bench.measure(server, name, size)
    return cells


def growth(cells: Cells, over: str, since: float, most: float) -> list[tuple[str, bool]]:
    """How many times as much a request costs at the largest size as at `since`."""
    verdicts = []
    for name, of in cells.items():
        small, large = of[since], of[max(of)]
        times = small.rate / large.rate if small and large else None
        found = f"{times:.2f} times the cost" if times else "void"
        text = (
            f"{TITLES[name]} from {since:,.10g} {over} to {max(of):,.10g}: {found}, {most} at most"
        )
        verdicts.append((text, times is not None and times <= most))
    return verdicts


def tasks_of_one(bench: Bench) -> Section:
    sizes = {float(count): Size(1, count) for count in (10, 100, 1_000, 10_000, 100_000)}
    cells = over_sizes(bench, sizes, OPERATIONS)
    over = "tasks of one user"
    verdicts = growth(cells, over, 100, OF_ONE)
    return Section("One user with many tasks", shown(cells, over), panels(cells, over), verdicts)


def tasks_in_all(bench: Bench) -> Section:
    """Each user has as many, so that a page is as long with few users as with many."""
    counts = (1_000, 10_000, 100_000, 1_000_000)
    sizes = {float(count): Size(count // EACH, EACH) for count in counts}
    cells = over_sizes(bench, sizes, OPERATIONS)
    over = "tasks in all"
    title = f"Up to {USERS:,} users with {EACH} tasks each"
    return Section(
        title, shown(cells, over), panels(cells, over), growth(cells, over, 1_000, IN_ALL)
    )


def clients(bench: Bench) -> Section:
    size = Size(USERS, 10)
    cells: Cells = {name: {} for name in WRITES}
    with bench.serving(size) as server:
        bench.warm(server, size)
        for count in CLIENTS:
            for name in WRITES:
                cells[name][count] = bench.measure(server, name, size, connections=count)
    verdicts = []
    for name, of in cells.items():
        many = of[MANY_CLIENTS]
        found = f"p95 {many.p95:.0f} ms" if many else "void"
        text = f"{TITLES[name]} with {MANY_CLIENTS} clients: {found}, under {P95} ms"
        verdicts.append((text, many is not None and many.p95 < P95))
    over = "clients"
    return Section("Many clients", shown(cells, over), panels(cells, over), verdicts)


def distance(bench: Bench) -> Section:
    size = Size(1_000, 60)
    operations = ("get", "list", "create", "mix")
    cells: Cells = {name: {} for name in operations}
    found = []
    for milliseconds in (None, 0, 1, 5, FAR):
        way = (
            nullcontext(bench.data.url)
            if milliseconds is None
            else delayed(bench.data.url, milliseconds)
        )
        with way as url, bench.serving(size, url=url, threads=FAR_THREADS) as server:
            bench.warm(server, size)
            taken = round_trip(url)
            rates = []
            for name in operations:
                measured = bench.measure(server, name, size, connections=4 * CONNECTIONS)
                rates.append(shown_cell(measured))
                if milliseconds is not None:
                    cells[name][taken] = measured
            what = "no proxy, Unix socket" if milliseconds is None else f"{milliseconds} ms"
            found.append([what, f"{taken:.2f} ms", *rates])
    head = [
        "delay (requests/s / p99)",
        "round trip with this delay",
        *(TITLES[name] for name in cells),
    ]
    verdicts = []
    for name, of in cells.items():
        far = of[max(of)]
        rate = f"{far.rate:.0f} requests/s" if far else "void"
        text = f"{TITLES[name]} at {FAR} ms: {rate}, {FAR_RATE} at least"
        verdicts.append((text, far is not None and far.rate >= FAR_RATE))
    over = "a round trip, ms"
    title = f"A database that is far away ({WORKERS} workers, {FAR_THREADS} threads each)"
    return Section(title, table(head, found), panels(cells, over, log=False), verdicts)


def memory(bench: Bench) -> Section:
    """What each worker has resident, if none is replaced meanwhile as gunicorn.conf.py has it."""
    size = Size(1_000, 60)
    tenth = bench.requests / 10
    with bench.serving(size, recycle=False) as server:
        points = [(0.0, max(server.memory()))]
        done, operations = 0, ("mix", "get", "not_modified", "list", "complete")
        while done < bench.requests:
            name = operations[len(points) % len(operations)]
            until = min(done + tenth, bench.requests)
            while done < until:
                measured = bench.measure(server, name, size, seconds=max(bench.seconds, 5))
                if measured is None:
                    raise VoidError(bench.void[-1])
                done += measured.requests
            points.append((float(done), max(server.memory())))
    idle, warm, last = points[0][1], points[2][1] if len(points) > 2 else 0, points[-1][1]  # noqa: PLR2004
    rows = [[f"{count:,.0f}", f"{size:.1f}"] for count, size in points]
    panel = chart.Lines("MB of the larger worker", "requests", {"": points}, log=False)
    verdicts = [
        (f"{idle:.1f} MB idle, {last:.1f} at the end, {WORKER_MB} at most", last <= WORKER_MB),
        (
            f"{last - warm:+.1f} MB after the first 10 % of the requests, {GROWTH_MB} at most",
            last - warm <= GROWTH_MB,
        ),
    ]
    title = "A worker's memory"
    return Section(title, table(["requests", "MB of the larger worker"], rows), [panel], verdicts)


PARTS: dict[str, Callable[[Bench], Section]] = {
    "tasks-of-one": tasks_of_one,
    "tasks-in-all": tasks_in_all,
    "clients": clients,
    "distance": distance,
    "memory": memory,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=int, default=5, help="of each cell")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the memory's part")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return given


def main() -> None:
    given = arguments()
    require_wrk()
    missed = False
    with tempfile.TemporaryDirectory() as name, migrated() as data:
        bench = Bench(data, Path(name), given.seconds, given.requests, [])
        for part in given.parts or PARTS:
            section = PARTS[part](bench)
            lines = [
                f"- {'target met' if held else '**target missed**'}: {text}"
                for text, held in section.verdicts
            ]
            parts = [section.table, "\n".join(lines)] if lines else [section.table]
            print(f"{section.title}\n\n" + "\n\n".join(parts) + "\n", flush=True)
            missed |= not all(held for _, held in section.verdicts)
            if given.write:
                picture = f"performance-{part}.svg"
                (ROOT / "docs" / picture).write_text(chart.lines(section.panels))
                setup = f"{given.seconds} s for each measurement. {machine(data)}."
                parts += [f"![{section.title}]({picture})", setup]
                replace_section(f"make bench-growth: {part}", "\n\n".join(parts) + "\n")
        for reason in bench.void:
            print(f"void: {reason}")
    if missed or bench.void:
        sys.exit("A target was missed, or a measurement is void: see above.")


if __name__ == "__main__":
    main()
