"""Thousands of connections are opened, left, cut, reset and half closed, and requests come between.

In each round hundreds of idle connections are reset while the server closes the first of them. No
thread is lost, every whole request is answered, and all descriptors are given back. `SEED` repeats
the choices of a run.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from fault_injection import MissingProgramError, print_figures
from fault_injection.client_traffic import KEEP_ALIVE, Traffic
from fault_injection.invalid_requests import memory
from fault_injection.servers import postgresql, serving, wait_until
from fault_injection.worker_state import (
    assert_all_answered_at_once,
    assert_every_thread_serves,
    await_no_connections,
    count_threads,
    read_state,
)

if TYPE_CHECKING:
    from fault_injection.servers import Api, Postgres

WORKERS, THREADS = 2, 4
SETTINGS = {
    "WEB_CONCURRENCY": str(WORKERS),
    "WEB_THREADS": str(THREADS),
    "GUNICORN_CMD_ARGS": f"--keep-alive {KEEP_ALIVE}",
}
# Connections of a round: as many as two workers accept, by gunicorn's worker_connections.
IDLE, MIXED = 1600, 400
MIXED_SECONDS = 0.7  # in which the mixed ones come: before the idle ones are closed
MAX_GROWTH = 20  # MB, of one worker
ATTEMPTS = 3  # at showing that every thread serves
NEEDED = 4096  # descriptors of this process


def run(*, short: bool) -> None:
    allow_descriptors()
    with postgresql() as server, serving(server.url(), **SETTINGS) as api:
        endure(api, server, rounds=6 if short else 100)


def allow_descriptors() -> None:
    """Let this process have as many connections as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < NEEDED:
        raise MissingProgramError(f"The hard limit on open files is {most}; {NEEDED} are needed.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass
class Endurance:
    """The workers as they were when nothing had happened."""

    api: Api
    server: Postgres

    def __post_init__(self) -> None:
        self.workers = self.api.workers()
        # The first time, a worker opens all of its connections to the database.
        self.assert_serving()
        await_no_connections(self.api)
        self.states = {worker: read_state(worker) for worker in self.workers}

    def assert_serving(self) -> None:
        """Assert that every thread of every worker serves, and 2 x threads requests at once.

        A thread that is lost stays lost. A stall of the machine, in which the keep-alive timeout of
        these connections passes, does not, so this is tried again.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                assert_every_thread_serves(self.api, self.server, THREADS)
                assert_all_answered_at_once(self.api, 2 * THREADS * WORKERS)
            except AssertionError:
                if attempt == ATTEMPTS:
                    raise
            else:
                return

    def assert_unharmed(self) -> None:
        """Assert that the workers are those of before, with all threads, and serve."""
        assert self.api.workers() == self.workers, "A worker was lost."
        for worker, state in self.states.items():
            wait_until(
                lambda worker=worker, state=state: count_threads(worker) == state.threads,
                f"worker {worker} has {state.threads} threads",
                10,
            )
        self.assert_serving()
        assert self.api.workers() == self.workers, "A worker was lost."
        log = self.api.log.read_text(errors="replace")
        assert "Traceback" not in log, log[-4000:]

    def assert_descriptors_returned(self) -> None:
        """Assert that the workers have no more descriptors than before."""
        await_no_connections(self.api)
        for worker, state in self.states.items():
            now = read_state(worker)
            assert now.descriptors <= state.descriptors, f"Worker {worker}: {state}, {now}"


def endure(api: Api, server: Postgres, *, rounds: int, idle: int = IDLE) -> None:
    """Run so many rounds of traffic; between them and afterwards the server is as before."""
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"  SEED={seed}", flush=True)
    random = Random(seed)
    endurance = Endurance(api, server)
    counts: Counter[str] = Counter()
    grown_from: dict[int, float] = {}
    for number in range(1, rounds + 1):
        # The ports of closed connections stay taken for a minute: each round has its own address.
        traffic = Traffic(api.address, f"127.3.{1 + number % 250}.1", random)
        try:
            asyncio.run(traffic.run(MIXED, idle, MIXED_SECONDS))
            failures = traffic.failures
            assert not failures, f"{len(failures)} connections failed: {failures[:10]}"
            endurance.assert_unharmed()
            if number % 10 == 0 or number == rounds:
                endurance.assert_descriptors_returned()
        except Exception as error:
            error.add_note(f"Round {number} of {rounds}, SEED={seed}: {dict(traffic.counts)}")
            raise
        counts += traffic.counts
        if number == 1 + rounds // 10:  # a worker keeps something of its first rounds
            grown_from = {worker: memory(worker) for worker in endurance.workers}
    grown = max(memory(worker) - before for worker, before in grown_from.items())
    print_figures(
        rounds=rounds,
        **{name: counts[name] for name in ("connections", "half sent", "resets")},
        **{name: counts[name] for name in ("whole requests", "answered", "repeated")},
        closed_as_idle_with_a_request_on_its_way=counts["closed as idle"],
        idle_connections_closed_after=f"{counts['ms until an idle one is closed'] / rounds:.0f} ms",
        threads_and_descriptors_before=list(endurance.states.values()),
        threads_and_descriptors_after=[read_state(worker) for worker in endurance.workers],
        a_worker_grew_by=f"{grown:.1f} MB",
    )
    assert counts["whole requests"] == counts["answered"], counts
    assert grown <= MAX_GROWTH, f"A worker grew by {grown:.1f} MB."
