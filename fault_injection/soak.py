"""A steady, moderate load for long: what is taken is given back.

`DURATION` is its seconds on a full run, 600 unless it is set.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.journal import Journal, compare, writers
from fault_injection.servers import postgresql, serving

if TYPE_CHECKING:
    from fault_injection.servers import Api, Postgres

CLIENTS = 4
PAUSE = 0.02  # seconds that a client waits before its next request
SHORT = 10.0  # seconds
MEMORY = 0.05  # of what was used after the warm-up, which a worker may grow by


class Sample(NamedTuple):
    """What the API has at one time, all of its processes together."""

    kilobytes: int
    descriptors: int
    backends: int


def run(*, short: bool) -> None:
    seconds = SHORT if short else float(os.environ.get("DURATION", "600"))
    with postgresql() as server, serving(server.url()) as api:
        journal = Journal()
        samples = []
        begun = time.monotonic()
        with writers(api, journal, CLIENTS, pause=PAUSE):
            while time.monotonic() < begun + seconds:
                time.sleep(seconds / 100)
                samples.append(sample(api, server))
                assert not journal.wrong, "\n".join(journal.wrong[:20])
        with server.connect() as connection:
            compare(journal, connection)
    warm, last = samples[20:40], samples[-20:]
    grown = {
        name: (
            statistics.median(getattr(each, name) for each in warm),
            statistics.median(getattr(each, name) for each in last),
        )
        for name in Sample._fields
    }
    print_figures(
        seconds=round(seconds),
        requests=journal.requests,
        requests_per_second=round(journal.requests / seconds),
        acknowledged=journal.acknowledged,
        answers_of_503=journal.outcomes["503"],
        requests_without_an_answer=journal.outcomes["no answer"],
        **{
            f"{name} after warm-up, at the end": f"{a:.0f}, {b:.0f}"
            for name, (a, b) in grown.items()
        },
    )
    before, after = grown["kilobytes"]
    assert after < before * (1 + MEMORY) + 4096, f"Memory grew from {before} to {after} kB."
    for name in ("descriptors", "backends"):
        before, after = grown[name]
        assert after <= before + 2, f"{name} grew from {before} to {after}."


def sample(api: Api, server: Postgres) -> Sample:
    assert api.process
    processes = [Path(f"/proc/{each}") for each in (api.process.pid, *api.workers())]
    with server.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'todo-api'"
        ).fetchone()
    assert row
    return Sample(
        kilobytes=sum(resident(process) for process in processes),
        descriptors=sum(len(list((process / "fd").iterdir())) for process in processes),
        backends=row[0],
    )


def resident(process: Path) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
