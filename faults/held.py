"""All connections are held: a session has a lock that every statement needs.

Who is let at the database gets no further than the deadline, who is not is told so at once, and
/livez is answered all the while.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from faults import table
from faults.clients import Client
from faults.servers import await_that, postgresql, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from faults.clients import Answer

REQUESTS = 200
CLIENTS = 50
DEADLINE = 2.0  # seconds, REQUEST_TIMEOUT
AT_ONCE = 0.25  # seconds in which a request that finds no room is told so
PROBE_EVERY = 0.02  # seconds


class Limits(NamedTuple):
    """What the figures of one run must hold, in seconds.

    A short run is part of the tests, on machines that do much else at the same time: it finds a
    request that hangs, and a full run the one that is slow.
    """

    probe: float
    recovery: float
    tolerance: float


FULL = Limits(probe=0.05, recovery=1.0, tolerance=0.25)
SHORT = Limits(probe=1.0, recovery=5.0, tolerance=2.0)


class Timed(NamedTuple):
    """An answer, and the seconds from when it was asked for."""

    answer: Answer
    seconds: float


def run(*, short: bool) -> None:
    limits = SHORT if short else FULL
    with (
        postgresql() as server,
        serving(server.url(), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        user = uuid.uuid4()
        with Client(api.address) as client:
            assert client.request("POST", f"/api/{user}/tasks", {"title": "Oats"}).status == 201
        with probing(api.address) as idle:
            time.sleep(1 if short else 5)
        with server.connect() as connection, probing(api.address) as probes:
            with connection.transaction():
                connection.execute("LOCK TABLE tasks, users IN ACCESS EXCLUSIVE MODE")
                answers = ask_at_once(api.address, f"/api/{user}/tasks")
            released = time.monotonic()
            with Client(api.address) as client:
                await_that(
                    lambda: client.request("GET", f"/api/{user}/tasks").status == 200,
                    "requests are answered again",
                )
                recovered = time.monotonic() - released
    statuses = sorted({timed.answer.status for timed in answers})
    assert len(answers) == REQUESTS
    assert statuses == [503], statuses
    assert all("retry-after" in timed.answer.headers for timed in answers)
    seconds = sorted(timed.seconds for timed in answers)
    turned_away = [each for each in seconds if each < DEADLINE / 2]
    waited = [each for each in seconds if each >= DEADLINE / 2]
    assert turned_away, "Nobody was turned away at once."
    table(
        requests_while_all_was_held=len(answers),
        **{"of which at once": len(turned_away), "of which at the deadline": len(waited)},
        median_of_those_at_once=f"{statistics.median(turned_away) * 1000:.1f} ms",
        slowest_of_those_at_once=f"{turned_away[-1] * 1000:.0f} ms",
        slowest=f"{seconds[-1]:.2f} s",
        deadline=f"{DEADLINE:.2f} s",
        back_after=f"{recovered * 1000:.0f} ms",
        livez_while_idle=shown(idle),
        livez_while_held=shown(probes),
    )
    assert turned_away[-1] < max(AT_ONCE, limits.tolerance), "Turned away, but not at once."
    assert seconds[-1] < DEADLINE + limits.tolerance, "Answered after the deadline."
    assert recovered < limits.recovery, f"Back after {recovered:.2f} s."
    assert percentile(probes, 99) < limits.probe, f"/livez: {shown(probes)}"


def ask_at_once(address: tuple[str, int], path: str) -> list[Timed]:
    """The answers to REQUESTS of CLIENTS that all go on as soon as they are answered."""
    answers: list[Timed] = []
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(REQUESTS):
        left.put(number)

    def ask() -> None:
        with Client(address) as client:
            while True:
                try:
                    number = left.get_nowait()
                except queue.Empty:
                    return
                begun = time.monotonic()
                body = {"title": "Buy oat milk"} if number % 2 else None
                answer = client.request("POST" if body else "GET", path, body)
                answers.append(Timed(answer, time.monotonic() - begun))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


@contextmanager
def probing(address: tuple[str, int]) -> Iterator[list[float]]:
    """The seconds that each /livez takes, asked over a new connection, as probes do."""
    seconds: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.wait(PROBE_EVERY):
            begun = time.monotonic()
            with Client(address) as client:
                answer = client.request("GET", "/livez")
            seconds.append(time.monotonic() - begun if answer.status == 200 else float("inf"))

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stop.set()
        thread.join(30)


def percentile(seconds: list[float], part: int) -> float:
    return statistics.quantiles(seconds, n=100)[part - 1]


def shown(seconds: list[float]) -> str:
    p50, p99 = percentile(seconds, 50) * 1000, percentile(seconds, 99) * 1000
    return f"{len(seconds)} times, p50 {p50:.1f}, p99 {p99:.1f}, most {max(seconds) * 1000:.0f} ms"
