"""More connections come than the workers have descriptors for (`ulimit -n 300`).

No worker ends, and requests on the connections that were accepted are answered, and the connections
closed. The others wait, and are answered when connections close. Each worker stops accepting before
its last descriptor, so accept never fails, and no worker spins meanwhile.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from faults import table
from faults.connections import SETTINGS, WORKERS, Endurance, allow_descriptors, endure
from faults.servers import postgresql, serving
from faults.worker_state import ANSWER_TIMEOUT, UNKNOWN_PATH, cpu_seconds, read_status

if TYPE_CHECKING:
    from faults.servers import Api, Postgres

DESCRIPTORS = 300  # of each worker, all that it opens included
ESTABLISHED, SILENT, WAITING = 40, WORKERS * DESCRIPTORS, 1000  # connections
IDLE = 450  # of a round: with the mixed connections, more than the workers accept
KEEP_ALIVE = 60  # seconds, so that only the clients close connections
MAX_CPU = 0.5  # seconds of CPU, of one worker in a second in which nothing is asked

# The log's line when accept fails.
LINE = re.compile("descriptor|open files", re.IGNORECASE)


def run(*, short: bool) -> None:
    allow_descriptors()
    patient = SETTINGS | {"GUNICORN_CMD_ARGS": f"--keep-alive {KEEP_ALIVE}"}
    with postgresql() as server:
        with serving(server.url(), descriptors=DESCRIPTORS, **patient) as api:
            exhaust(api, server, seconds=2 if short else 20)
        with serving(server.url(), descriptors=DESCRIPTORS, **SETTINGS) as api:
            endure(api, server, rounds=1 if short else 10, idle=IDLE)


def exhaust(api: Api, server: Postgres, *, seconds: float) -> None:
    """Take every descriptor for so long, and let 1,000 requests wait for one."""
    endurance = Endurance(api, server)
    with ExitStack() as stack:
        established = [connect(api, stack) for _ in range(ESTABLISHED)]
        slowest = ask_all(established)
        silent = [connect(api, stack) for _ in range(SILENT)]
        waiting = [connect(api, stack) for _ in range(WAITING)]
        for connection in waiting:
            connection.request("GET", UNKNOWN_PATH)
        time.sleep(1)
        assert api.workers() == endurance.workers, "A worker was lost."
        spent = {worker: cpu_seconds(worker) for worker in endurance.workers}
        time.sleep(1)
        assert api.workers() == endurance.workers, "A worker was lost."
        spent = {worker: cpu_seconds(worker) - before for worker, before in spent.items()}
        answered = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answered += len(established)
            slowest = max(slowest, ask_all(established))
            time.sleep(0.05)
        assert answered >= ESTABLISHED, "Nothing was asked while there was no descriptor."
        assert api.workers() == endurance.workers, "A worker was lost."
        lines = [line for line in api.log.read_text().splitlines() if LINE.search(line)]
        for connection in silent:
            connection.close()
        for connection in waiting:
            assert read_status(connection, "a request that waited for a descriptor") == 404
            connection.close()
        slowest = max(slowest, ask_all(established))
    endurance.assert_unharmed()
    endurance.assert_descriptors_returned()
    table(
        descriptors_of_each_worker=DESCRIPTORS,
        connections=len(established) + len(silent) + len(waiting),
        answers_while_there_was_none=answered,
        slowest_of_them=f"{slowest:.2f} s",
        answered_when_there_were_some=len(waiting),
        cpu_seconds_of_a_worker_in_a_second=f"{max(spent.values()):.2f}",
        lines_in_the_log=len(lines),
    )
    assert max(spent.values()) <= MAX_CPU, f"A worker spins: {spent}"
    assert not lines, f"accept failed: {lines[:10]}"


def connect(api: Api, stack: ExitStack) -> HTTPConnection:
    connection = HTTPConnection(*api.address, timeout=ANSWER_TIMEOUT)
    stack.callback(connection.close)
    connection.connect()
    return connection


def ask_all(established: list[HTTPConnection]) -> float:
    """Ask on each of the connections at once, and return the seconds until all are answered.

    Connections that the responses close are taken out. AssertionError if one has no response.
    """
    begun = time.monotonic()
    for connection in established:
        connection.request("GET", "/livez")
    for connection in established:
        assert read_status(connection, "a request on an accepted connection") == 200
    # A worker without room says `Connection: close`, so that the next client gets the descriptor.
    established[:] = [connection for connection in established if connection.sock]
    return time.monotonic() - begun
