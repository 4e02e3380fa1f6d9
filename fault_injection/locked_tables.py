"""A session locks all tables, so all statements of the API wait.

A request with a slot gets 503 at its deadline. A request without a slot is refused with 503: the
first one of a worker after STALL_TIMEOUT, the others at once. /livez waits for STALL_TIMEOUT at
most.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
import uuid
from typing import NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Client, Response
from fault_injection.livez_probe import livez_probe
from fault_injection.servers import postgresql, serving, wait_until
from todo_api.db.admission import STALL_TIMEOUT

REQUESTS = 200
CLIENTS = 25
PAUSE = 0.1  # seconds between two requests of a client, so that they last as long as the lock
DEADLINE = 3.0  # seconds, REQUEST_TIMEOUT


class Limits(NamedTuple):
    """The maximum times of a run, in seconds.

    The slowest /livez without a lock is added to each limit, because it shows the stalls of the
    machine. A short run has longer limits, because the tests share their machine: it finds requests
    that hang, and a full run finds requests that are slow.
    """

    refused: float  # for a request without a slot, after STALL_TIMEOUT
    past_deadline: float
    recovery: float
    livez: float  # for 95 of 100 probes; for all probes, after STALL_TIMEOUT


FULL = Limits(refused=0.25, past_deadline=0.1, recovery=1.0, livez=0.05)
SHORT = Limits(refused=2.0, past_deadline=2.0, recovery=5.0, livez=1.0)


class TimedResponse(NamedTuple):
    """A response, and its response time in seconds."""

    response: Response
    seconds: float


def run(*, short: bool) -> None:
    limits = SHORT if short else FULL
    timed_responses: list[TimedResponse] = []
    recovery = 0.0
    with (
        postgresql() as server,
        serving(server.url(), REQUEST_TIMEOUT=str(DEADLINE)) as api,
        server.connect() as connection,
    ):
        path = f"/api/{uuid.uuid4()}/tasks"
        with Client(api.address) as client:
            assert client.request("POST", path, {"title": "Oats"}).status == 201
        with livez_probe(api.address) as idle:
            time.sleep(1 if short else 10)
        with livez_probe(api.address) as locked:
            for _ in range(1 if short else 5):
                with connection.transaction():
                    connection.execute("LOCK TABLE tasks, users IN ACCESS EXCLUSIVE MODE")
                    timed_responses += send_requests(api.address, path)
                recovery = max(recovery, measure_recovery(api.address, path))
    seconds = sorted(timed.seconds for timed in timed_responses)
    refused = [each for each in seconds if each < DEADLINE / 2]
    with_slot = [each for each in seconds if each >= DEADLINE / 2]
    statuses = {timed.response.status for timed in timed_responses}
    assert statuses == {503}, f"Statuses {statuses} while all tables were locked."
    assert all("retry-after" in timed.response.headers for timed in timed_responses)
    assert refused, "No request was refused before its deadline."
    print_figures(
        requests_while_tables_were_locked=len(timed_responses),
        **{"of these refused": len(refused), "of these ended by the deadline": len(with_slot)},
        refused_after=f"p50 {statistics.median(refused) * 1000:.1f} ms, "
        f"max {refused[-1] * 1000:.0f} ms",
        slowest_response=f"{seconds[-1]:.2f} s with a deadline of {DEADLINE:.2f} s",
        recovery=f"{recovery * 1000:.0f} ms",
        livez_while_idle=idle,
        livez_while_locked=locked,
    )
    assert not locked.failures, locked.failures
    stall = max(idle.seconds)
    assert statistics.median(refused) < limits.refused + stall, "Refused late."
    assert refused[-1] < STALL_TIMEOUT + limits.refused + stall, "Refused late."
    assert seconds[-1] < DEADLINE + limits.past_deadline + stall, "A response after the deadline."
    assert recovery < limits.recovery + stall, f"The recovery took {recovery:.2f} s."
    assert locked.percentile(95) < limits.livez + idle.percentile(99), f"/livez: {locked}"
    assert max(locked.seconds) < STALL_TIMEOUT + limits.livez + stall, f"/livez: {locked}"


def send_requests(address: tuple[str, int], path: str) -> list[TimedResponse]:
    """Send REQUESTS requests, alternately reads and writes. Return their responses."""
    timed_responses: list[TimedResponse] = []
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(REQUESTS):
        numbers.put(number)

    def run_client() -> None:
        with Client(address) as client:
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    return
                started = time.monotonic()
                body = {"title": "Buy oat milk"} if number % 2 else None
                response = client.request("POST" if body else "GET", path, body)
                timed_responses.append(TimedResponse(response, time.monotonic() - started))
                time.sleep(PAUSE)

    threads = [threading.Thread(target=run_client, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    count = len(timed_responses)
    assert count == REQUESTS, f"{count} of {REQUESTS} requests got a response."
    return timed_responses


def measure_recovery(address: tuple[str, int], path: str) -> float:
    """Return the seconds until CLIENTS new requests in a row succeed with 200."""
    started = time.monotonic()

    def all_succeed() -> bool:
        with Client(address) as client:
            return all(client.request("GET", path).status == 200 for _ in range(CLIENTS))

    wait_until(all_succeed, "requests succeed again")
    return time.monotonic() - started
