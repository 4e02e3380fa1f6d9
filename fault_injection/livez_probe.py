"""A liveness probe as an orchestrator has it: /livez every 20 ms, each time on a new connection.

The probe is a separate process, so that the clients of a scenario do not affect its times.
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

INTERVAL = 0.02  # seconds


class Probes(NamedTuple):
    """The response times of all probes in seconds, and the failures: no response, or not 200."""

    seconds: list[float]
    failures: list[str]

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    def __str__(self) -> str:
        figures = {"p50": self.percentile(50), "p99": self.percentile(99)}
        figures["max"] = max(self.seconds)
        text = ", ".join(f"{name} {1000 * value:.1f}" for name, value in figures.items())
        return f"{text} ms of {len(self.seconds)}"


@contextmanager
def livez_probe(address: tuple[str, int]) -> Iterator[Probes]:
    """Probe the address during the context. At its exit, the yielded value has the results."""
    probes = Probes([], [])
    process = subprocess.Popen(
        [sys.executable, "-m", "fault_injection.livez_probe", *map(str, address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        process.stdout.readline()  # the first probe has ended
        yield probes
    finally:
        output, _ = process.communicate(timeout=60)  # closes its input, so the process ends
        seconds, failures = json.loads(output)
        probes.seconds.extend(seconds)
        probes.failures.extend(failures)


def main(host: str, port: int) -> None:
    """Probe until standard input ends, then print the seconds and the failures as JSON."""
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    seconds, failures = [], []
    while not stop.wait(INTERVAL):
        started = time.monotonic()
        try:
            with Client((host, port)) as client:
                response = client.request("GET", "/livez")
            if response.status != 200:
                failures.append(str(response))
        except (OSError, HTTPException) as error:
            failures.append(repr(error))
        seconds.append(time.monotonic() - started)
        if len(seconds) == 1:
            print(flush=True)
    print(json.dumps([seconds, failures]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
