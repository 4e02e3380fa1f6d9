"""What goes wrong in production, done on purpose to real servers; `make fault-injection` runs it.

A part is a module here with `run(*, short: bool) -> None`, which raises AssertionError if a promise
was broken, and Absent if a program that it needs is not on this machine. docs/fault-injection.md tells what
each of them does. Everything is on loopback, bounded, and ends by itself.
"""

from __future__ import annotations

# In the order in which they are run. Each has about the minutes of docs/fault-injection.md in full, and a
# few seconds with `short`.
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


class Absent(Exception):  # noqa: N818  nothing is wrong
    """A program that this part needs is not installed; the message names its package."""


def table(**figures: object) -> None:
    """Print a part's figures, one a line."""
    for name, figure in figures.items():
        shown = f"{figure:,}" if isinstance(figure, int) else figure
        print(f"  {name.replace('_', ' '):40} {shown!s:>12}", flush=True)
