"""PostgreSQL stalls: all of its processes are stopped for some time, as by a disk that hangs.

In a stall of half a second, requests are slower and do not fail. In an outage of many seconds,
requests are refused with 503: the first ones within about a second, the later ones at once. /livez
responds during the outage, and requests succeed as soon as PostgreSQL continues.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.journal import write_during
from fault_injection.livez_probe import Probes, livez_probe
from fault_injection.load import Load, load, percentile
from fault_injection.servers import postgresql, serving, wait_until
from todo_api.db.admission import STALL_TIMEOUT

if TYPE_CHECKING:
    from fault_injection.servers import Api, Postgres

STALL = 0.5  # seconds
LONGEST_STALL = 0.6  # as measured, which includes the time to stop and to continue all processes
CLIENTS = 16
DEADLINE = 5.0  # seconds, REQUEST_TIMEOUT
MARGIN = 1.5  # seconds of the load before and after an outage


class Limits(NamedTuple):
    """The maximum times of a run, in seconds.

    A short run has longer limits, because the tests share their machine with other work.
    """

    first_refusals: float  # after STALL_TIMEOUT
    later_refusals: float  # the median
    past_deadline: float
    livez: float  # after the wait for a free thread
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
            started = time.monotonic()
            with server.stalled(STALL):
                pass
            longest = max(longest, time.monotonic() - started)

        journal = write_during(
            stall, times=times, writes=writes, api=api, server=server, clients=CLIENTS
        )
    print_figures(longest_stall=f"{longest:.2f} s")
    # On a machine with other work, a stall of half a second can become an outage.
    failures = {each: journal.outcomes[each] for each in ("503", "no response")}
    assert longest > LONGEST_STALL or not any(failures.values()), (
        f"{failures} in stalls of {longest:.2f} s"
    )


def refuse_during_outage(
    server: Postgres, threads: int, clients: int, seconds: float, limits: Limits
) -> None:
    """Stop the server for longer than STALL_TIMEOUT while clients read without a pause."""
    settings = {"REQUEST_TIMEOUT": str(DEADLINE), "WEB_THREADS": str(threads)}
    with serving(server.url(), **settings) as api:
        outage = stop_database(server, api, clients, seconds)
    unavailable = sorted(outage.load.seconds_of(503))
    refused = [each for each in unavailable if each < DEADLINE / 2]
    slowest = max(result.seconds for result in outage.load.results)
    livez = max(outage.probes.seconds)
    print_figures(
        threads=threads,
        clients=clients,
        outage=f"{seconds} s",
        refused=len(refused),
        refused_after=f"p50 {1000 * percentile(50, refused):.0f} ms, "
        f"max {1000 * max(refused, default=0):.0f} ms",
        ended_by_the_deadline=len(unavailable) - len(refused),
        slowest_response=f"{slowest:.2f} s with a deadline of {DEADLINE:.2f} s",
        livez=outage.probes,
        recovery=f"{1000 * outage.recovery:.0f} ms",
    )
    assert set(outage.load.statuses) <= {200, 503}, outage.load.statuses
    assert not outage.probes.failures, outage.probes.failures
    assert outage.recovery < limits.recovery, f"The recovery took {outage.recovery:.2f} s."
    if threads == 1:
        # /livez waits for two requests: one in the database, and one that waits for a connection.
        assert livez < 2 * DEADLINE + limits.past_deadline, f"/livez took {livez:.2f} s."
        return
    assert refused, "No request was refused."
    assert refused[-1] < STALL_TIMEOUT + limits.first_refusals, "The first refusals were late."
    assert percentile(50, refused) < limits.later_refusals, "Refused late."
    assert slowest < DEADLINE + limits.past_deadline, f"A response took {slowest:.2f} s."
    assert livez < STALL_TIMEOUT + limits.livez, f"/livez took {livez:.2f} s."


def stop_database(server: Postgres, api: Api, clients: int, seconds: float) -> Outage:
    """Stop PostgreSQL for `seconds` while clients read a task and a probe reads /livez."""
    loads: list[Load] = []
    with Client(api.address) as client:
        created = client.request("POST", f"/api/{uuid.uuid4()}/tasks", {"title": "Oats"})
        task = created.headers["location"]
        reader = threading.Thread(
            target=lambda: loads.append(
                load(api.address, task, seconds + 2 * MARGIN, clients=clients)
            ),
            daemon=True,
        )
        reader.start()
        time.sleep(MARGIN)
        with livez_probe(api.address) as probes, server.stalled(seconds):
            pass
        recovery = wait_until(lambda: client.request("GET", task).status == 200, "a read is 200")
        reader.join()
    assert loads, "The load has failed."
    return Outage(loads[0], probes, recovery)
