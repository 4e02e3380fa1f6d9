"""PostgreSQL stalls: all of its processes are stopped for a while, as by a disk that hangs.

A stall of half a second costs time and no error. An outage of many seconds is refused: within about
a second at first, then at once. /livez answers meanwhile, and requests succeed as soon as
PostgreSQL goes on.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.journal import write_through
from fault_injection.livez_probe import Probes, probing
from fault_injection.load import Load, load, percentile
from fault_injection.servers import postgresql, serving, wait_until
from todo_api.db.admission import STALL_TIMEOUT

if TYPE_CHECKING:
    from fault_injection.servers import Api, Postgres

STALL = 0.5  # seconds
LONGEST_STALL = 0.6  # as measured, which includes the time to stop and to continue all processes
CLIENTS = 16
DEADLINE = 5.0  # seconds, REQUEST_TIMEOUT
AROUND = 1.5  # seconds of the load before and after an outage


class Limits(NamedTuple):
    """How late each thing may be, in seconds; a short run is on machines that do much else."""

    first_refusals: float  # beyond STALL_TIMEOUT
    later_refusals: float  # the median
    past_deadline: float
    livez: float  # beyond the wait for a free thread
    recovery: float


FULL = Limits(first_refusals=0.7, later_refusals=0.3, past_deadline=1.0, livez=0.5, recovery=1.0)
SHORT = Limits(first_refusals=2, later_refusals=1, past_deadline=3, livez=2, recovery=5)


class Outage(NamedTuple):
    """The requests and probes during an outage, and the seconds from its end to the first 200."""

    load: Load
    probes: Probes
    recovery: float


def run(*, short: bool) -> None:
    with postgresql() as server:
        pass_through_stalls(server, short=short)
        if short:
            refuse_during_outage(server, 4, CLIENTS, 3, SHORT)
            return
        for threads in (1, 4, 8):
            for clients in (CLIENTS, 100):
                refuse_during_outage(server, threads, clients, 8, FULL)


def pass_through_stalls(server: Postgres, *, short: bool) -> None:
    """Stall the server while clients write: no request fails, and no write is lost."""
    times, writes = (3, 600) if short else (20, 6_000)
    longest = 0.0
    with serving(server.url()) as api:

        def stall() -> None:
            nonlocal longest
            begun = time.monotonic()
            with server.stalled(STALL):
                pass
            longest = max(longest, time.monotonic() - begun)

        journal = write_through(
            stall, times=times, writes=writes, api=api, server=server, clients=CLIENTS
        )
    print_figures(longest_stall=f"{longest:.2f} s")
    # On a machine that is busy with other things, half a second can become an outage.
    assert longest > LONGEST_STALL or not journal.outcomes, (
        f"{journal.outcomes} in stalls of {longest:.2f} s"
    )


def refuse_during_outage(
    server: Postgres, threads: int, clients: int, seconds: float, limits: Limits
) -> None:
    """Stop the server for longer than STALL_TIMEOUT while clients read without a pause."""
    settings = {"REQUEST_TIMEOUT": str(DEADLINE), "WEB_THREADS": str(threads)}
    with serving(server.url(), **settings) as api:
        outage = break_down(server, api, clients, seconds)
    unavailable = sorted(outage.load.of(503))
    refused = [each for each in unavailable if each < DEADLINE / 2]
    slowest = max(each.seconds for each in outage.load.answers)
    livez = max(outage.probes.seconds)
    print_figures(
        threads=threads,
        clients=clients,
        outage=f"{seconds} s",
        refused=len(refused),
        refused_after=f"p50 {1000 * percentile(50, refused):.0f} ms, "
        f"most {1000 * max(refused, default=0):.0f} ms",
        waited_for_the_database=len(unavailable) - len(refused),
        slowest_answer=f"{slowest:.2f} s with a deadline of {DEADLINE:.2f} s",
        livez=outage.probes,
        back_after=f"{1000 * outage.recovery:.0f} ms",
    )
    assert set(outage.load.statuses) <= {200, 503}, outage.load.statuses
    assert not outage.probes.failures, outage.probes.failures
    assert outage.recovery < limits.recovery, f"Back after {outage.recovery:.2f} s."
    if threads == 1:
        # One request is with the database, and the next one waits for another connection.
        assert livez < 2 * DEADLINE + limits.past_deadline, f"/livez took {livez:.2f} s."
        return
    assert refused, "No request was refused."
    assert refused[-1] < STALL_TIMEOUT + limits.first_refusals, "Refused late at first."
    assert percentile(50, refused) < limits.later_refusals, "Refused late."
    assert slowest < DEADLINE + limits.past_deadline, f"An answer took {slowest:.2f} s."
    assert livez < STALL_TIMEOUT + limits.livez, f"/livez took {livez:.2f} s."


def break_down(server: Postgres, api: Api, clients: int, seconds: float) -> Outage:
    """Stop the server for so many seconds while clients read and a probe asks for /livez."""
    loads: list[Load] = []
    with Client(api.address) as client:
        made = client.request("POST", f"/api/{uuid.uuid4()}/tasks", {"title": "Oats"})
        task = made.headers["location"]
        reading = threading.Thread(
            target=lambda: loads.append(
                load(api.address, task, seconds + 2 * AROUND, clients=clients)
            ),
            daemon=True,
        )
        reading.start()
        time.sleep(AROUND)
        with probing(api.address) as probes, server.stalled(seconds):
            pass
        recovery = wait_until(lambda: client.request("GET", task).status == 200, "a read is 200")
        reading.join()
    assert loads, "The load has failed."
    return Outage(loads[0], probes, recovery)
