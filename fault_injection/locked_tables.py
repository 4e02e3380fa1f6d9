"""All connections are held: a session has a lock that every statement needs.

A request with a slot gets no further than the deadline. A request without one is refused: the
first of a worker after STALL_TIMEOUT, the others at once. /livez waits for that first one at most.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
import uuid
from typing import NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Answer, Client
from fault_injection.livez_probe import probing
from fault_injection.servers import postgresql, serving, wait_until
from todo_api.db.admission import STALL_TIMEOUT

REQUESTS = 200
CLIENTS = 25
PAUSE = 0.1  # seconds between two requests of a client: they come for as long as all is held
DEADLINE = 3.0  # seconds, REQUEST_TIMEOUT


class Limits(NamedTuple):
    """What the figures of one run must hold, in seconds.

    The machine's own stalls come on top: by how much /livez was late just before, when nothing was
    held. A short run is part of the tests, on machines that do much else at the same time: it finds
    a request that hangs, and a full run the one that is slow.
    """

    refused: float  # a request without a slot, beyond STALL_TIMEOUT
    past_deadline: float
    recovery: float
    livez: float  # of 95 in 100; and of all of them, beyond STALL_TIMEOUT


FULL = Limits(refused=0.25, past_deadline=0.1, recovery=1.0, livez=0.05)
SHORT = Limits(refused=2.0, past_deadline=2.0, recovery=5.0, livez=1.0)


class Timed(NamedTuple):
    """An answer, and the seconds from when it was asked for."""

    answer: Answer
    seconds: float


def run(*, short: bool) -> None:
    limits = SHORT if short else FULL
    answers: list[Timed] = []
    recovered = 0.0
    with (
        postgresql() as server,
        serving(server.url(), REQUEST_TIMEOUT=str(DEADLINE)) as api,
        server.connect() as connection,
    ):
        path = f"/api/{uuid.uuid4()}/tasks"
        with Client(api.address) as client:
            assert client.request("POST", path, {"title": "Oats"}).status == 201
        with probing(api.address) as idle:
            time.sleep(1 if short else 10)
        with probing(api.address) as busy:
            for _ in range(1 if short else 5):
                with connection.transaction():
                    connection.execute("LOCK TABLE tasks, users IN ACCESS EXCLUSIVE MODE")
                    answers += ask(api.address, path)
                recovered = max(recovered, recover(api.address, path))
    seconds = sorted(timed.seconds for timed in answers)
    refused = [each for each in seconds if each < DEADLINE / 2]
    waited = [each for each in seconds if each >= DEADLINE / 2]
    statuses = {timed.answer.status for timed in answers}
    assert statuses == {503}, f"Answered with {statuses} though all was held."
    assert all("retry-after" in timed.answer.headers for timed in answers)
    assert refused, "No request was refused before its deadline."
    print_figures(
        requests_while_all_was_held=len(answers),
        **{"of which refused": len(refused), "of which at the deadline": len(waited)},
        refused_after=f"p50 {statistics.median(refused) * 1000:.1f} ms, "
        f"most {refused[-1] * 1000:.0f} ms",
        slowest_answer=f"{seconds[-1]:.2f} s with a deadline of {DEADLINE:.2f} s",
        back_after=f"{recovered * 1000:.0f} ms",
        livez_while_idle=idle,
        livez_while_held=busy,
    )
    assert not busy.failures, busy.failures
    stall = max(idle.seconds)
    assert statistics.median(refused) < limits.refused + stall, "Refused late."
    assert refused[-1] < STALL_TIMEOUT + limits.refused + stall, "Refused late."
    assert seconds[-1] < DEADLINE + limits.past_deadline + stall, "Answered after the deadline."
    assert recovered < limits.recovery + stall, f"Back after {recovered:.2f} s."
    assert busy.percentile(95) < limits.livez + idle.percentile(99), f"/livez: {busy}"
    assert max(busy.seconds) < STALL_TIMEOUT + limits.livez + stall, f"/livez: {busy}"


def ask(address: tuple[str, int], path: str) -> list[Timed]:
    """The answers to REQUESTS, reads and writes in turns."""
    answers: list[Timed] = []
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(REQUESTS):
        numbers.put(number)

    def ask_on() -> None:
        with Client(address) as client:
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    return
                begun = time.monotonic()
                body = {"title": "Buy oat milk"} if number % 2 else None
                answer = client.request("POST" if body else "GET", path, body)
                answers.append(Timed(answer, time.monotonic() - begun))
                time.sleep(PAUSE)

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == REQUESTS, f"{len(answers)} of {REQUESTS} were answered."
    return answers


def recover(address: tuple[str, int], path: str) -> float:
    """Seconds until CLIENTS new requests in a row are answered with 200."""
    begun = time.monotonic()

    def well() -> bool:
        with Client(address) as client:
            return all(client.request("GET", path).status == 200 for _ in range(CLIENTS))

    wait_until(well, "requests are answered again")
    return time.monotonic() - begun
