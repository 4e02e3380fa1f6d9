"""A probe as an orchestrator's: /livez, again and again, each time over a new connection.

It is a process of its own, or the part's own clients would be in its figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, NamedTuple

from fault_injection.clients import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = 0.02  # seconds


class Probes(NamedTuple):
    """How long each probe took, in seconds, and how many were not answered with 200."""

    seconds: list[float]
    failures: list[str]

    def percentile(self, part: int) -> float:
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[part - 1]

    def __str__(self) -> str:
        figures = {"p50": self.percentile(50), "p99": self.percentile(99)}
        figures["most"] = max(self.seconds)
        told = ", ".join(f"{name} {1000 * value:.1f}" for name, value in figures.items())
        return f"{told} ms of {len(self.seconds)}"


@contextmanager
def probing(address: tuple[str, int]) -> Iterator[Probes]:
    """Probe for as long as this is entered; what came of it is there afterwards."""
    probes = Probes([], [])
    process = subprocess.Popen(
        [sys.executable, "-m", "fault_injection.livez_probe", *map(str, address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        process.stdout.readline()  # the first probe has been answered
        yield probes
    finally:
        output, _ = process.communicate(timeout=60)  # the end of its input tells it to end
        seconds, failures = json.loads(output)
        probes.seconds.extend(seconds)
        probes.failures.extend(failures)


def main(host: str, port: int) -> None:
    """Probe until standard input ends, then print the seconds and the failures as JSON."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    seconds, failures = [], []
    while not stop.wait(EVERY):
        begun = time.monotonic()
        try:
            with Client((host, port)) as client:
                answer = client.request("GET", "/livez")
            if answer.status != 200:
                failures.append(str(answer))
        except (OSError, HTTPException) as error:
            failures.append(repr(error))
        seconds.append(time.monotonic() - begun)
        if len(seconds) == 1:
            print(flush=True)
    print(json.dumps([seconds, failures]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
