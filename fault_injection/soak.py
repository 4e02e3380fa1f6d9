"""A steady, moderate load for a long time: memory, descriptors and backends do not grow.

The environment variable `DURATION` sets the seconds of a full run; its default is 600.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.change_log import create_change_log
from fault_injection.journal import Journal, compare, writers
from fault_injection.servers import postgresql, serving

if TYPE_CHECKING:
    from fault_injection.servers import Api, Postgres

CLIENTS = 4
PAUSE = 0.02  # seconds that a client waits before its next request
SHORT = 10.0  # seconds
MAX_GROWTH = 0.05  # of the memory after the warm-up


class Sample(NamedTuple):
    """The resources of all processes of the API together at one time."""

    kilobytes: int
    descriptors: int
    backends: int


def run(*, short: bool) -> None:
    seconds = SHORT if short else float(os.environ.get("DURATION", "600"))
    with postgresql() as server, serving(server.url()) as api:
        with server.connect() as connection:
            create_change_log(connection)
        journal = Journal()
        samples = []
        started = time.monotonic()
        with writers(api, journal, CLIENTS, pause=PAUSE):
            while time.monotonic() < started + seconds:
                time.sleep(seconds / 100)
                samples.append(take_sample(api, server))
                assert not journal.errors, "\n".join(journal.errors[:20])
        with server.connect() as connection:
            compare(journal, connection)
    after_warm_up, at_end = samples[20:40], samples[-20:]
    medians = {
        name: (
            statistics.median(getattr(sample, name) for sample in after_warm_up),
            statistics.median(getattr(sample, name) for sample in at_end),
        )
        for name in Sample._fields
    }
    print_figures(
        seconds=round(seconds),
        requests=journal.requests,
        requests_per_second=round(journal.requests / seconds),
        writes_acknowledged=journal.acknowledged,
        responses_of_503=journal.outcomes["503"],
        requests_without_a_response=journal.outcomes["no response"],
        **{
            f"{name} after warm-up, at the end": f"{a:.0f}, {b:.0f}"
            for name, (a, b) in medians.items()
        },
    )
    before, after = medians["kilobytes"]
    assert after < before * (1 + MAX_GROWTH) + 4096, f"Memory grew from {before} to {after} kB."
    for name in ("descriptors", "backends"):
        before, after = medians[name]
        assert after <= before + 2, f"{name} grew from {before} to {after}."


def take_sample(api: Api, server: Postgres) -> Sample:
    assert api.process
    processes = [Path(f"/proc/{process}") for process in (api.process.pid, *api.workers())]
    with server.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'todo-api'"
        ).fetchone()
    assert row
    return Sample(
        kilobytes=sum(resident_memory(process) for process in processes),
        descriptors=sum(len(list((process / "fd").iterdir())) for process in processes),
        backends=row[0],
    )


def resident_memory(process: Path) -> int:
    """Return the resident memory of the process in kB."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
