"""Compare the working tree with another Git revision: `make bench-revision REV=main~5`.

Both are measured alternately. The database has the schema of the working tree, so the other
revision must be able to use it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compare import SIZE
from data import ROOT, migrated, write_tokens
from load import InvalidMeasurementError, measure, require_wrk
from performance_page import table
from systems import THIS_API, serving

if TYPE_CHECKING:
    from data import Data
    from systems import Server

OPERATIONS = ("get", "list", "create", "patch", "complete", "mix")
TREES = ("before", "now")


def main() -> None:
    """Print a row for each operation: the medians of rates and CPU times, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    require_wrk()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        before = folder / "before"
        git = ["git", "-C", ROOT, "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", before, options.revision], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", before], check=True)
        data = stack.enter_context(migrated())
        write_tokens(folder / "tokens", SIZE.users)
        servers = {}
        for name, tree in zip(TREES, (before, ROOT), strict=True):
            system = replace(THIS_API, name=name, folder=tree)
            servers[name] = stack.enter_context(
                serving(
                    system, data.url, folder / f"{name}.log", tokens=True, threads=options.threads
                )
            )
        print(report(data, servers, folder / "tokens", options))


def report(
    data: Data, servers: dict[str, Server], tokens: Path, options: argparse.Namespace
) -> str:
    rows = []
    for operation in OPERATIONS:
        rates, costs = defaultdict(list), defaultdict(list)
        # The first round warms up.
        for number in range(options.rounds + 1):
            for name in TREES if number % 2 else reversed(TREES):
                data.reset(SIZE)
                cpu = servers[name].cpu()
                try:
                    measurement = measure(
                        *(servers[name].url, operation, data, SIZE),
                        tokens=tokens,
                        seconds=options.seconds,
                        connections=options.connections,
                    )
                except InvalidMeasurementError as error:
                    print(f"{name}: {error}")
                    continue
                if number:
                    rates[name].append(measurement.rate)
                    costs[name].append((servers[name].cpu() - cpu) / measurement.requests * 1e6)
        rate = {name: statistics.median(rates[name]) for name in TREES}
        cost = {name: statistics.median(costs[name]) for name in TREES}
        rows.append(
            [
                operation,
                *(f"{rate[name]:,.0f}" for name in TREES),
                f"{rate['now'] / rate['before']:.2f}",
                *(f"{cost[name]:.0f}" for name in TREES),
                f"{cost['now'] / cost['before']:.2f}",
            ]
        )
        print(*rows[-1], flush=True)
    heads = ["operation", "requests/s before", "now", "ratio", "CPU before (us)", "now", "ratio"]
    return table(heads, rows)


if __name__ == "__main__":
    main()
