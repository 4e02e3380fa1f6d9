"""Thousands of connections are idle, incomplete, reset or half closed, and others send requests.

In each round, hundreds of idle connections are reset while the server closes the first of them. No
thread is lost, every complete request gets a response, and all file descriptors are closed. The
environment variable `SEED` repeats the random choices of a run.
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
    assert_concurrent_requests_succeed,
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
MIXED_SECONDS = 0.7  # in which the mixed ones are opened: before the idle ones are closed
MAX_GROWTH = 20  # MB, of one worker
MAX_CHECKS = 3  # until every thread has to serve
MIN_DESCRIPTORS = 4096  # of this process


def run(*, short: bool) -> None:
    allow_descriptors()
    with postgresql() as server, serving(server.url(), **SETTINGS) as api:
        run_rounds(api, server, rounds=6 if short else 100)


def allow_descriptors() -> None:
    """Raise this process's limit on open files to the hard limit."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < MIN_DESCRIPTORS:
        raise MissingProgramError(
            f"The hard limit on open files is {limit}; {MIN_DESCRIPTORS} are needed."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


@dataclass
class Baseline:
    """The state of the workers before the load, and checks against it."""

    api: Api
    server: Postgres

    def __post_init__(self) -> None:
        self.workers = self.api.workers()
        # The first time, a worker opens all of its connections to the database.
        self.assert_serving()
        await_no_connections(self.api)
        self.states = {worker: read_state(worker) for worker in self.workers}

    def assert_serving(self) -> None:
        """Assert that every thread of every worker serves, and twice as many requests at once.

        The check runs again after a failure: a stall of the machine can let the keep-alive timeout
        pass. A lost thread makes all checks fail.
        """
        for number in range(1, MAX_CHECKS + 1):
            try:
                assert_every_thread_serves(self.api, self.server, THREADS)
                assert_concurrent_requests_succeed(self.api, 2 * THREADS * WORKERS)
            except AssertionError:
                if number == MAX_CHECKS:
                    raise
            else:
                return

    def assert_unchanged(self) -> None:
        """Assert that the same workers serve, with all their threads and without a traceback."""
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

    def assert_descriptors_closed(self) -> None:
        """Assert that the workers have no more descriptors than before."""
        await_no_connections(self.api)
        for worker, state in self.states.items():
            now = read_state(worker)
            assert now.descriptors <= state.descriptors, f"Worker {worker}: {state}, {now}"


def run_rounds(api: Api, server: Postgres, *, rounds: int, idle: int = IDLE) -> None:
    """Run rounds of traffic; after each, check that the server is in the same state as before."""
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    print(f"  SEED={seed}", flush=True)
    random = Random(seed)
    baseline = Baseline(api, server)
    counts: Counter[str] = Counter()
    memory_before: dict[int, float] = {}
    for number in range(1, rounds + 1):
        # The ports of closed connections stay in use for a minute, so each round has an address.
        traffic = Traffic(api.address, f"127.3.{1 + number % 250}.1", random)
        try:
            asyncio.run(traffic.run(MIXED, idle, MIXED_SECONDS))
            failures = traffic.failures
            assert not failures, f"{len(failures)} connections failed: {failures[:10]}"
            baseline.assert_unchanged()
            if number % 10 == 0 or number == rounds:
                baseline.assert_descriptors_closed()
        except Exception as error:
            error.add_note(f"Round {number} of {rounds}, SEED={seed}: {dict(traffic.counts)}")
            raise
        counts += traffic.counts
        if number == 1 + rounds // 10:  # the caches of a worker grow in its first rounds
            memory_before = {worker: memory(worker) for worker in baseline.workers}
    growth = max(memory(worker) - before for worker, before in memory_before.items())
    print_figures(
        rounds=rounds,
        **{name: counts[name] for name in ("connections", "incomplete requests", "resets")},
        **{name: counts[name] for name in ("complete requests", "responses", "retries")},
        closed_as_idle_during_a_request=counts["closed as idle"],
        idle_connections_closed_after=f"{counts['ms until an idle one is closed'] / rounds:.0f} ms",
        threads_and_descriptors_before=list(baseline.states.values()),
        threads_and_descriptors_after=[read_state(worker) for worker in baseline.workers],
        growth_of_a_worker=f"{growth:.1f} MB",
    )
    assert counts["complete requests"] == counts["responses"], counts
    assert growth <= MAX_GROWTH, f"A worker grew by {growth:.1f} MB."
