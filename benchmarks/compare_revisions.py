"""Compare the working tree with another revision, in turns: `make bench-revision REV=main~5`.

The database has the working tree's schema, with which the version before can serve, too.
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
from load import VoidError, measure, require_wrk
from performance_page import table
from systems import OURS, serving

if TYPE_CHECKING:
    from data import Data
    from systems import Server

OPERATIONS = ("get", "list", "create", "patch", "complete", "mix")
TREES = ("before", "now")


def main() -> None:
    """Print a row for each operation: rates, CPU for a request, and their ratios (medians)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    asked = parser.parse_args()
    require_wrk()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        before = folder / "before"
        git = ["git", "-C", ROOT, "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", before, asked.revision], check=True)
        stack.callback(subprocess.run, [*git, "remove", "--force", before], check=True)
        data = stack.enter_context(migrated())
        write_tokens(folder / "tokens", SIZE.users)
        servers = {}
        for name, tree in zip(TREES, (before, ROOT), strict=True):
            contender = replace(OURS, name=name, folder=tree)
            servers[name] = stack.enter_context(
                serving(
                    contender, data.url, folder / f"{name}.log", tokens=True, threads=asked.threads
                )
            )
        print(report(data, servers, folder / "tokens", asked))


def report(data: Data, servers: dict[str, Server], tokens: Path, asked: argparse.Namespace) -> str:
    rows = []
    for operation in OPERATIONS:
        rates, costs = defaultdict(list), defaultdict(list)
        # The first round warms up.
        for number in range(asked.rounds + 1):
            for name in TREES if number % 2 else reversed(TREES):
                data.reset(SIZE)
                cpu = servers[name].cpu()
                try:
                    cell = measure(
                        *(servers[name].url, operation, data, SIZE),
                        tokens=tokens,
                        seconds=asked.seconds,
                        connections=asked.connections,
                    )
                except VoidError as error:
                    print(f"{name}: {error}")
                    continue
                if number:
                    rates[name].append(cell.rate)
                    costs[name].append((servers[name].cpu() - cpu) / cell.requests * 1e6)
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
