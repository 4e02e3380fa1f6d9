"""More connections come than the workers have descriptors for (`ulimit -n 300`).

No worker ends, and no connection that was accepted is cut. The others wait, and are answered when
connections close. A worker may know the limit and accept fewer connections, so the limit is lowered
once more while it runs: then `accept` fails, the log says so once, and no worker spins.
"""

from __future__ import annotations

import re
import resource
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.connections import SETTINGS, WORKERS, Endurance, allow_descriptors, endure
from fault_injection.servers import postgresql, serving
from fault_injection.worker_state import ANSWER_TIMEOUT, UNKNOWN_PATH, cpu_seconds, read_status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fault_injection.servers import Api, Postgres

DESCRIPTORS = 300  # of each worker, all that it opens included
LOWERED = 150  # for the same workers, later
ESTABLISHED, SILENT, WAITING = 40, WORKERS * DESCRIPTORS, 1000  # connections
IDLE = 400  # of a round: with the mixed connections, more than the workers accept
KEEP_ALIVE = 60  # seconds, so that only the clients close connections
MAX_CPU = 0.5  # seconds of CPU, of one worker in a second in which nothing is asked

# A line of the log on it: one of each worker, and another if a second minute begins.
LINE = re.compile("descriptor|open files", re.IGNORECASE)
MAX_LINES = 2 * WORKERS


def run(*, short: bool) -> None:
    allow_descriptors()
    patient = SETTINGS | {"GUNICORN_CMD_ARGS": f"--keep-alive {KEEP_ALIVE}"}
    seconds = 1 if short else 10
    with postgresql() as server:
        with serving(server.url(), descriptors=DESCRIPTORS, **patient) as api:
            lines = exhaust(api, server, seconds)
            assert len(lines) <= MAX_LINES, f"{len(lines)} lines in the log: {lines[:10]}"
            for worker in api.workers():
                resource.prlimit(worker, resource.RLIMIT_NOFILE, (LOWERED, LOWERED))
            lines = exhaust(api, server, seconds)
            assert 1 <= len(lines) <= MAX_LINES, f"{len(lines)} lines in the log: {lines[:10]}"
        with serving(server.url(), descriptors=DESCRIPTORS, **SETTINGS) as api:
            endure(api, server, rounds=1 if short else 10, idle=IDLE)


def exhaust(api: Api, server: Postgres, seconds: float) -> list[str]:
    """Take every descriptor for so long, and let 1,000 requests wait for one.

    Return what the log said meanwhile.
    """
    endurance = Endurance(api, server)
    logged = len(read_lines(api))
    with ExitStack() as stack:
        established = Established(connect(api, stack) for _ in range(ESTABLISHED))
        established.ask()
        silent = [connect(api, stack) for _ in range(SILENT)]
        waiting = [connect(api, stack) for _ in range(WAITING)]
        for connection in waiting:
            connection.request("GET", UNKNOWN_PATH)
        time.sleep(1)
        assert api.workers() == endurance.workers, "A worker was lost."
        spent = {worker: cpu_seconds(worker) for worker in endurance.workers}
        time.sleep(1)
        spent = {worker: cpu_seconds(worker) - before for worker, before in spent.items()}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            established.ask()
            time.sleep(0.05)
        assert api.workers() == endurance.workers, "A worker was lost."
        for connection in silent:
            connection.close()
        for connection in waiting:
            assert read_status(connection, "a request that waited for a descriptor") == 404
            connection.close()
        established.ask()
    endurance.assert_unharmed()
    endurance.assert_descriptors_returned()
    lines = read_lines(api)[logged:]
    print_figures(
        connections=ESTABLISHED + SILENT + WAITING,
        answers_on_accepted_connections=established.answered,
        of_which_said_that_the_connection_ends=established.ended,
        slowest_of_them=f"{established.slowest:.2f} s",
        answers_to_those_that_waited=len(waiting),
        cpu_seconds_of_a_worker_in_a_second=f"{max(spent.values()):.2f}",
        lines_in_the_log=len(lines),
    )
    assert max(spent.values()) <= MAX_CPU, f"A worker spins: {spent}"
    return lines


def read_lines(api: Api) -> list[str]:
    return [line for line in api.log.read_text().splitlines() if LINE.search(line)]


class Established:
    """Connections that were accepted while there were descriptors."""

    def __init__(self, connections: Iterable[HTTPConnection]) -> None:
        self._connections = list(connections)
        self.answered = self.ended = 0
        self.slowest = 0.0  # seconds

    def ask(self) -> None:
        """Ask on each of the connections at once; AssertionError if one is cut.

        A worker that is full may end a connection by saying so in the answer (RFC 9112, section
        9.6): it is not asked again.
        """
        begun = time.monotonic()
        for connection in self._connections:
            connection.request("GET", "/livez")
        for connection in self._connections:
            assert read_status(connection, "a request on an accepted connection") == 200
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.answered += len(self._connections)
        # http.client closes a connection of which the server says that it ends.
        kept = [connection for connection in self._connections if connection.sock]
        self.ended += len(self._connections) - len(kept)
        self._connections = kept


def connect(api: Api, stack: ExitStack) -> HTTPConnection:
    connection = HTTPConnection(*api.address, timeout=ANSWER_TIMEOUT)
    stack.callback(connection.close)
    connection.connect()
    return connection
