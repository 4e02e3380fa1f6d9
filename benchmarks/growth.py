"""Measure this API with more data, clients and latency: `make bench-growth`.

Each section varies one size: the tasks of one user, all tasks, the clients, the latency of the
database, or the number of requests, with the memory of a worker. `queries` measures the reads that
have no index. `make bench-growth ARGS=clients`
measures one section.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import chart
import psycopg
from compare import TITLES, machine
from data import (
    ROOT,
    SUBTASKS_OF,
    WRITES,
    Data,
    Size,
    list_id,
    migrated,
    task_id,
    token,
    user_id,
    write_tokens,
)
from delay_proxy import delayed, round_trip
from load import CONNECTIONS, GET, LIMIT, InvalidMeasurementError, measure, require_wrk
from performance_page import replace_section, table
from psycopg import sql
from systems import THIS_API, THREADS, WORKERS, send_request, serving

from todo_api.web.fields import PAGE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from load import Measurement
    from systems import Server

USERS = 10_000
OPERATIONS = ("get", "list", "create", "patch")

CLIENTS = (1, 2, 5, 10, 20, 50, 100, 200)
# Targets: the p95 in milliseconds with many clients, the rate in requests/s with a far database,
# the cost of a request compared with the first size, and the memory of a worker in MB.
MANY_CLIENTS, MAX_P95 = 100, 200
FAR_MILLISECONDS, FAR_THREADS, MIN_FAR_RATE = 20, 8, 300
MAX_RATIO_OF_ONE_USER, MAX_RATIO_OF_ALL_USERS = 1.5, 1.3
MAX_MEMORY, MAX_GROWTH = 80, 4  # growth after the first 20 % of the requests
TASKS_OF_EACH_USER = 100

# The tasks of one user in the sections `pages` and `queries`, and the rounds of both. Half of the
# tasks are in a list, and the others are in the Inbox.
COUNTS_OF_PAGES = (100, 1_000, 10_000, 100_000)
COUNT_OF_QUERIES = 10_000
ROUNDS = 5

# More than any user has in these measurements, so that no request is refused.
MAX_TASKS = 10_000_000

# The orders whose first and last pages are index scans: the filter and the sort of each query.
PAGES = {
    "created_at": ("", "&sort=-created_at"),
    "due, not completed": ("completed=false", "&sort=due"),
    "list, position": (f"list_id={list_id(1)}", "&sort=position"),
    "Inbox, position": ("list_id=inbox", "&sort=position"),
}
WHICH_PAGES = ("first page", "last page")

# Reads of 50 tasks, and other reads, of which only the first four use an index for their order or
# filter. A filter that few tasks pass reads all of them: the title ends with the number, no task
# has the label, and few tasks are due today. One of ten tasks of the list has no parent.
QUERIES = {
    "page by created_at": "/tasks?limit=50",
    "page of a list by position": f"/tasks?limit=50&list_id={list_id(1)}&sort=position",
    "page of a list by position, parent_id=none": (
        f"/tasks?limit=50&list_id={list_id(1)}&parent_id=none&sort=position"
    ),
    "9 subtasks by position": f"/tasks?limit=50&parent_id={task_id(SUBTASKS_OF)}&sort=position",
    "page by priority": "/tasks?limit=50&sort=priority",
    "page by title": "/tasks?limit=50&sort=title",
    "page by completed_at": "/tasks?limit=50&sort=-completed_at",
    "q, one task": "/tasks?limit=50&q=number%209999",
    "label, no task": "/tasks?limit=50&label=garden",
    "due=today": "/tasks?limit=50&due=today",
    "archived=false by title": "/tasks?limit=50&archived=false&sort=title",
    "archived=true by title": "/tasks?limit=50&archived=true&sort=title",
    "page of a list by title": f"/tasks?limit=50&list_id={list_id(1)}&sort=title",
    "two lists by position": f"/tasks?limit=50&list_id=inbox,{list_id(1)}&sort=position",
    "parent_id=none by position": "/tasks?limit=50&parent_id=none&sort=position",
    "count": "/tasks/count",
    "count, not completed": "/tasks/count?completed=false",
    "count, by=list_id": "/tasks/count?by=list_id",
    "count, archived=true": "/tasks/count?archived=true",
    "labels": "/labels",
}


@dataclass(frozen=True)
class Section:
    """The results of a section: a table, a chart, and each target with True if it is met."""

    title: str
    table: str
    panels: Sequence[chart.Lines]
    targets: Sequence[tuple[str, bool]] = ()


@dataclass(frozen=True)
class Bench:
    """The database, the settings and the invalid measurements of all sections."""

    data: Data
    folder: Path
    seconds: int
    requests: int
    invalid: list[str]

    @contextmanager
    def serving(
        self, size: Size, *, url: str = "", threads: int = THREADS, recycle: bool = True
    ) -> Iterator[Server]:
        """Serve this API with a database of this size, and a token for each of its users."""
        self.data.reset(size)
        write_tokens(self.folder / "tokens", size.users)
        options = () if recycle else ("--max-requests", "0")
        system = replace(
            THIS_API,
            command=(*THIS_API.command, *options),
            environ={**THIS_API.environ, "MAX_TASKS": str(MAX_TASKS)},
        )
        log = self.folder / "log"
        with serving(
            system, url or self.data.url, log, tokens=True, workers=WORKERS, threads=threads
        ) as server:
            yield server

    def measure(
        self,
        server: Server,
        operation: str,
        size: Size,
        connections: int = CONNECTIONS,
        seconds: int | None = None,
    ) -> Measurement | None:
        """Measure an operation, and reset the data after writes. None is an invalid measurement."""
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
        except InvalidMeasurementError as error:
            self.invalid.append(f"{error}, with {connections} clients")
            return None
        finally:
            if WRITES.get(operation):
                self.data.reset(size)

    @contextmanager
    def copy(self, name: str) -> Iterator[Bench]:
        """Yield a Bench for a copy of the database, to which no server may be connected."""
        administration = self.data.cluster.url()
        copy = sql.Identifier(name)
        with psycopg.connect(administration, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE bench").format(copy))
            try:
                data = Data(self.data.cluster.url(name), self.data.cluster)
                yield replace(self, data=data)
            finally:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(copy))

    def warm(self, server: Server, size: Size) -> None:
        """Warm up: each worker connects to the database and verifies the tokens."""
        for operation in OPERATIONS:
            self.measure(server, operation, size, seconds=1)
        self.measure(server, "get", size, seconds=2 * self.seconds)


# The measurements of each operation by the value on the x axis.
Measurements = dict[str, dict[float, "Measurement | None"]]


def format_table(measurements: Measurements, x_title: str) -> str:
    """Return a table of requests/s and p99 with a row for each x."""
    xs = sorted({x for by_x in measurements.values() for x in by_x})
    rows = [
        [f"{x:,.10g}", *(format_measurement(by_x[x]) for by_x in measurements.values())] for x in xs
    ]
    return table([x_title, *(TITLES[name] for name in measurements)], rows)


def format_measurement(measurement: Measurement | None) -> str:
    if measurement is None:
        return "invalid"
    return f"{measurement.rate:,.0f} / {measurement.p99:,.1f} ms"


def panels(measurements: Measurements, x_title: str, *, log: bool = True) -> list[chart.Lines]:
    values: Mapping[str, Callable[[Measurement], float]] = {
        "requests/s": lambda measurement: measurement.rate,
        "p99, ms": lambda measurement: measurement.p99,
    }
    return [
        chart.Lines(
            title,
            x_title,
            {
                TITLES[name]: [
                    (x, value(measurement))
                    for x, measurement in sorted(by_x.items())
                    if measurement
                ]
                for name, by_x in measurements.items()
            },
            log,
        )
        for title, value in values.items()
    ]


def measure_sizes(
    bench: Bench, sizes: Mapping[float, Size], operations: Sequence[str]
) -> Measurements:
    measurements: Measurements = {name: {} for name in operations}
    for x, size in sizes.items():
        with bench.serving(size) as server:
            bench.warm(server, size)
            for name in operations:
                measurements[name][x] = bench.measure(server, name, size)
    return measurements


def compare_costs(
    measurements: Measurements, x_title: str, first: float, max_ratio: float
) -> list[tuple[str, bool]]:
    """Compare the cost of a request at the largest x with its cost at `first`."""
    targets = []
    for name, by_x in measurements.items():
        last = max(by_x)
        small, large = by_x[first], by_x[last]
        ratio = small.rate / large.rate if small and large else None
        result = f"{ratio:.2f} times the cost" if ratio else "invalid"
        text = (
            f"{TITLES[name]} with {last:,.10g} {x_title}, compared with {first:,.10g}: "
            f"{result} (target: at most {max_ratio})"
        )
        targets.append((text, ratio is not None and ratio <= max_ratio))
    return targets


def tasks_of_one(bench: Bench) -> Section:
    sizes = {float(count): Size(1, count) for count in (10, 100, 1_000, 10_000, 100_000)}
    measurements = measure_sizes(bench, sizes, OPERATIONS)
    x_title = "tasks of one user"
    return Section(
        "One user with many tasks",
        format_table(measurements, x_title),
        panels(measurements, x_title),
        compare_costs(measurements, x_title, 100, MAX_RATIO_OF_ONE_USER),
    )


@dataclass(frozen=True)
class Cost:
    """A measurement, and the CPU time of the API and PostgreSQL for a request in microseconds."""

    measurement: Measurement
    cpu: float


def measure_cost(
    bench: Bench, server: Server, target: str, size: Size, connections: int = CONNECTIONS
) -> Cost | None:
    """Measure a GET of this path and query. None is an invalid measurement."""
    cpu_before = server.cpu() + bench.data.cpu()
    measurement = bench.measure(server, f"{GET} {target}", size, connections)
    if measurement is None:
        return None
    cpu = server.cpu() + bench.data.cpu() - cpu_before
    return Cost(measurement, cpu / measurement.requests * 1e6)


def pages(bench: Bench) -> Section:
    """Measure the first and the last full page, with all numbers of tasks in turn.

    With 100 tasks, the list and the Inbox have one full page each, which is the first and the last.
    """
    names = [f"{order}, {which}" for order in PAGES for which in WHICH_PAGES]
    costs: dict[str, dict[int, list[Cost | None]]]
    costs = {name: {count: [] for count in COUNTS_OF_PAGES} for name in names}
    with ExitStack() as stack:
        copies = {}
        for count in COUNTS_OF_PAGES:
            size = Size(1, count, has_lists=True)
            copy = stack.enter_context(bench.copy(f"tasks_{count}"))
            server = stack.enter_context(copy.serving(size))
            copies[count] = (copy, server, size, find_pages(server, names))
            copy.warm(server, size)
        for _ in range(ROUNDS):
            for name in names:
                for count, (copy, server, size, targets) in copies.items():
                    costs[name][count].append(measure_cost(copy, server, targets[name], size))
    medians = {
        name: {count: median_of(measured) for count, measured in by_count.items()}
        for name, by_count in costs.items()
    }
    rows = [
        [f"{count:,}", *(format_cost(medians[name][count]) for name in names)]
        for count in COUNTS_OF_PAGES
    ]
    first, last = COUNTS_OF_PAGES[0], COUNTS_OF_PAGES[-1]
    targets = []
    for name, by_count in costs.items():
        pairs = zip(by_count[first], by_count[last], strict=True)
        ratios = [large.cpu / small.cpu for small, large in pairs if small and large]
        ratio = statistics.median(ratios) if len(ratios) == ROUNDS else None
        text = (
            f"{name}, with {last:,} tasks of one user, compared with {first}: "
            f"{f'{ratio:.2f} times the CPU time' if ratio else 'invalid'} "
            f"(target: at most {MAX_RATIO_OF_ONE_USER})"
        )
        targets.append((text, ratio is not None and ratio <= MAX_RATIO_OF_ONE_USER))
    x_title = "tasks of one user"
    charts = [
        chart.Lines(
            f"µs of CPU for the {which}",
            x_title,
            {
                order: [
                    (float(count), cost.cpu)
                    for count, cost in medians[f"{order}, {which}"].items()
                    if cost
                ]
                for order in PAGES
            },
        )
        for which in WHICH_PAGES
    ]
    return Section(
        "Pages of one user with many tasks", table([x_title, *names], rows), charts, targets
    )


def format_cost(cost: Cost | None) -> str:
    if cost is None:
        return "invalid"
    return f"{cost.cpu:,.0f} µs / {cost.measurement.rate:,.0f}"


def median_of(costs: Iterable[Cost | None]) -> Cost | None:
    """Return the measurement with the median CPU time, or None if one is invalid."""
    valid = sorted((cost for cost in costs if cost), key=lambda cost: cost.cpu)
    return valid[len(valid) // 2] if len(valid) == ROUNDS else None


def find_pages(server: Server, names: Sequence[str]) -> dict[str, str]:
    """Return the path and query of each page. To find the last page, follow the links to it."""
    targets = []
    user = f"/api/{user_id(1)}"
    bearer = token(1)
    for filtered, sort in PAGES.values():
        count = send_request(server, "GET", f"{user}/tasks/count?{filtered}", bearer=bearer)
        skipped = count.body["count"] - LIMIT
        query = f"{filtered}{sort}".removeprefix("&")
        target = f"/tasks?limit={LIMIT}&{query}"
        targets.append(target)
        cursor = ""
        while skipped > 0:
            step = min(skipped, PAGE_LIMIT)
            path = f"{user}/tasks?limit={step}&{query}{cursor}"
            link = send_request(server, "GET", path, bearer=bearer).headers["Link"]
            found = re.search("cursor=([^&>]+)", link)
            assert found, link
            cursor = f"&cursor={found[1]}"
            skipped -= step
        targets.append(f"{target}{cursor}")
        page = send_request(server, "GET", f"{user}{targets[-1]}", bearer=bearer)
        assert len(page.body) == LIMIT, "The last page is not full."
        assert "Link" not in page.headers, "The page is not the last one."
    return dict(zip(names, targets, strict=True))


def queries(bench: Bench) -> Section:
    """Measure sorts, filters and counts without an index, one request after the other."""
    size = Size(1, COUNT_OF_QUERIES, has_lists=True)
    costs: dict[str, list[Cost | None]] = {name: [] for name in QUERIES}
    with bench.serving(size) as server:
        bench.warm(server, size)
        for _ in range(ROUNDS):
            for name, target in QUERIES.items():
                costs[name].append(measure_cost(bench, server, target, size, connections=1))
    rows = []
    for name, measured in costs.items():
        cost = median_of(measured)
        values = (cost.cpu / 1000, cost.measurement.p50, cost.measurement.p99) if cost else ()
        rows.append([name, *(f"{value:.1f}" for value in values)])
    head = [f"{COUNT_OF_QUERIES:,} tasks of one user", "CPU, ms", "p50, ms", "p99, ms"]
    return Section("Sorts and filters without an index", table(head, rows), [])


def tasks_in_all(bench: Bench) -> Section:
    """Increase the number of users. Each has 100 tasks, so that all pages have the same length."""
    counts = (1_000, 10_000, 100_000, 1_000_000)
    sizes = {
        float(count): Size(count // TASKS_OF_EACH_USER, TASKS_OF_EACH_USER) for count in counts
    }
    measurements = measure_sizes(bench, sizes, OPERATIONS)
    x_title = "tasks of all users"
    return Section(
        f"Up to {USERS:,} users with {TASKS_OF_EACH_USER} tasks each",
        format_table(measurements, x_title),
        panels(measurements, x_title),
        compare_costs(measurements, x_title, 1_000, MAX_RATIO_OF_ALL_USERS),
    )


def clients(bench: Bench) -> Section:
    size = Size(USERS, 10)
    measurements: Measurements = {name: {} for name in WRITES}
    with bench.serving(size) as server:
        bench.warm(server, size)
        for count in CLIENTS:
            for name in WRITES:
                measurements[name][count] = bench.measure(server, name, size, connections=count)
    targets = []
    for name, by_x in measurements.items():
        many = by_x[MANY_CLIENTS]
        result = f"a p95 of {many.p95:.0f} ms" if many else "invalid"
        text = f"{TITLES[name]} with {MANY_CLIENTS} clients: {result} (target: below {MAX_P95} ms)"
        targets.append((text, many is not None and many.p95 < MAX_P95))
    x_title = "clients"
    return Section(
        "Many clients", format_table(measurements, x_title), panels(measurements, x_title), targets
    )


def distance(bench: Bench) -> Section:
    size = Size(1_000, 60)
    operations = ("get", "list", "create", "mix")
    measurements: Measurements = {name: {} for name in operations}
    rows = []
    for milliseconds in (None, 0, 1, 5, FAR_MILLISECONDS):
        database_url = (
            nullcontext(bench.data.url)
            if milliseconds is None
            else delayed(bench.data.url, milliseconds)
        )
        with database_url as url, bench.serving(size, url=url, threads=FAR_THREADS) as server:
            bench.warm(server, size)
            round_trip_milliseconds = round_trip(url)
            columns = []
            for name in operations:
                measurement = bench.measure(server, name, size, connections=4 * CONNECTIONS)
                columns.append(format_measurement(measurement))
                if milliseconds is not None:
                    measurements[name][round_trip_milliseconds] = measurement
            delay = "no proxy, Unix socket" if milliseconds is None else f"{milliseconds} ms"
            rows.append([delay, f"{round_trip_milliseconds:.2f} ms", *columns])
    head = ["delay", "round trip", *(TITLES[name] for name in measurements)]
    targets = []
    for name, by_x in measurements.items():
        far = by_x[max(by_x)]
        rate = f"{far.rate:.0f} requests/s" if far else "invalid"
        text = (
            f"{TITLES[name]} with a delay of {FAR_MILLISECONDS} ms: "
            f"{rate} (target: at least {MIN_FAR_RATE})"
        )
        targets.append((text, far is not None and far.rate >= MIN_FAR_RATE))
    x_title = "a round trip, ms"
    title = f"A database that is far away ({WORKERS} workers, {FAR_THREADS} threads each)"
    return Section(title, table(head, rows), panels(measurements, x_title, log=False), targets)


def memory(bench: Bench) -> Section:
    """Measure the resident memory of the workers. No worker is replaced at max_requests."""
    size = Size(1_000, 60)
    tenth = bench.requests / 10
    with bench.serving(size, recycle=False) as server:
        points = [(0.0, max(server.memory()))]
        requests, operations = 0, ("mix", "get", "not_modified", "list", "complete")
        while requests < bench.requests:
            name = operations[len(points) % len(operations)]
            next_point = min(requests + tenth, bench.requests)
            while requests < next_point:
                measurement = bench.measure(server, name, size, seconds=max(bench.seconds, 5))
                if measurement is None:
                    raise InvalidMeasurementError(bench.invalid[-1])
                requests += measurement.requests
            points.append((float(requests), max(server.memory())))
    idle, warm, last = points[0][1], points[2][1] if len(points) > 2 else 0, points[-1][1]  # noqa: PLR2004
    rows = [[f"{count:,.0f}", f"{size:.1f}"] for count, size in points]
    panel = chart.Lines("MB of the larger worker", "requests", {"": points}, log=False)
    memory_text = (
        f"memory at the end: {last:.1f} MB, after {idle:.1f} MB at the start "
        f"(target: at most {MAX_MEMORY} MB)"
    )
    growth_text = (
        f"growth after the first 20 % of the requests: {last - warm:+.1f} MB "
        f"(target: at most {MAX_GROWTH} MB)"
    )
    targets = [(memory_text, last <= MAX_MEMORY), (growth_text, last - warm <= MAX_GROWTH)]
    title = "A worker's memory"
    return Section(title, table(["requests", "MB of the larger worker"], rows), [panel], targets)


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "tasks-of-one": tasks_of_one,
    "pages": pages,
    "queries": queries,
    "tasks-in-all": tasks_in_all,
    "clients": clients,
    "distance": distance,
    "memory": memory,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sections", nargs="*", default=[], metavar="section", help=", ".join(SECTIONS)
    )
    parser.add_argument("--seconds", type=int, default=5, help="seconds of each measurement")
    parser.add_argument(
        "--requests", type=int, default=1_000_000, help="requests of the section `memory`"
    )
    parser.add_argument("--write", action="store_true", help="write into docs/performance.md")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    options = arguments()
    require_wrk()
    is_missed = False
    with tempfile.TemporaryDirectory() as folder, migrated() as data:
        bench = Bench(data, Path(folder), options.seconds, options.requests, [])
        setup = f"Each measurement took {options.seconds} s. {machine(data)}."
        for name in options.sections or SECTIONS:
            section = SECTIONS[name](bench)
            lines = [
                f"- {text}. The target is {'met' if is_met else '**missed**'}."
                for text, is_met in section.targets
            ]
            parts = [section.table, "\n".join(lines)] if lines else [section.table]
            print(f"{section.title}\n\n" + "\n\n".join(parts) + "\n", flush=True)
            is_missed |= not all(is_met for _, is_met in section.targets)
            if options.write:
                if section.panels:
                    picture = f"performance-{name}.svg"
                    (ROOT / "docs" / picture).write_text(chart.lines(section.panels))
                    parts.append(f"![{section.title}]({picture})")
                parts.append(setup)
                replace_section(f"make bench-growth: {name}", "\n\n".join(parts) + "\n")
        for reason in bench.invalid:
            print(f"invalid: {reason}")
    if is_missed or bench.invalid:
        sys.exit("A target was missed, or measurements are invalid: see above.")


if __name__ == "__main__":
    main()
