"""Faults of production, injected into real servers under load: `make fault-injection`.

Each scenario is a module of this package with a function `run(*, short: bool) -> None`. It raises
AssertionError if the API breaks a promise, and MissingProgramError if a program is not installed.
docs/fault-injection.md describes the scenarios. All connections stay on the loopback interface, and
each scenario has limits in count and time.
"""

from __future__ import annotations

# In the order of a run. docs/fault-injection.md has the counts of a full run; with `short`, a
# scenario takes a few seconds.
SCENARIOS = (
    "postgres",
    "pooler",
    "backends",
    "workers",
    "lost_responses",
    "locked_tables",
    "stall",
    "black_hole",
    "cold_start",
    "deploys",
    "invalid_requests",
    "connections",
    "descriptors",
    "overload",
    "slow_clients",
    "soak",
)


class MissingProgramError(Exception):
    """A program that this scenario needs is not installed; the message names its package."""


def print_figures(**figures: object) -> None:
    """Print the figures of a scenario, one in each line."""
    for name, figure in figures.items():
        text = f"{figure:,}" if isinstance(figure, int) else figure
        print(f"  {name.replace('_', ' '):40} {text!s:>12}", flush=True)
