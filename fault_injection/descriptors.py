"""More connections are opened than the workers have file descriptors (`ulimit -n 300`).

No worker ends, and no accepted connection is lost. The other connections wait, and get responses
when connections close. A worker reads the limit at its start and accepts fewer connections, so the
scenario also lowers the limit of running workers: `accept` fails, each worker logs it once, and no
worker uses CPU in an idle loop.
"""

from __future__ import annotations

import re
import resource
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.connections import SETTINGS, WORKERS, Baseline, allow_descriptors, run_rounds
from fault_injection.servers import postgresql, serving
from fault_injection.worker_state import RESPONSE_TIMEOUT, UNKNOWN_PATH, cpu_seconds, read_status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fault_injection.servers import Api, Postgres

DESCRIPTORS = 300  # of each worker, its own files included
LOWERED_LIMIT = 150  # for the running workers
ESTABLISHED, SILENT, WAITING = 40, WORKERS * DESCRIPTORS, 1000  # connections
IDLE = 400  # connections of a round: with the mixed ones, more than the workers accept
KEEP_ALIVE = 60  # seconds, so that only the clients close connections
MAX_CPU = 0.5  # seconds of CPU, of one worker in a second without requests

# The log lines about descriptors: each worker logs one in a minute, and a run may last two minutes.
LINE = re.compile("descriptor|open files", re.IGNORECASE)
MAX_LINES = 2 * WORKERS


def run(*, short: bool) -> None:
    allow_descriptors()
    settings = SETTINGS | {"GUNICORN_CMD_ARGS": f"--keep-alive {KEEP_ALIVE}"}
    seconds = 1 if short else 10
    with postgresql() as server:
        with serving(server.url(), descriptors=DESCRIPTORS, **settings) as api:
            lines = exhaust_descriptors(api, server, seconds)
            assert len(lines) <= MAX_LINES, f"{len(lines)} lines in the log: {lines[:10]}"
            for worker in api.workers():
                resource.prlimit(worker, resource.RLIMIT_NOFILE, (LOWERED_LIMIT, LOWERED_LIMIT))
            lines = exhaust_descriptors(api, server, seconds)
            assert 1 <= len(lines) <= MAX_LINES, f"{len(lines)} lines in the log: {lines[:10]}"
        with serving(server.url(), descriptors=DESCRIPTORS, **SETTINGS) as api:
            run_rounds(api, server, rounds=1 if short else 10, idle=IDLE)


def exhaust_descriptors(api: Api, server: Postgres, seconds: float) -> list[str]:
    """Occupy all descriptors for `seconds` while 1,000 requests wait for one.

    Return the lines of the log about descriptors.
    """
    baseline = Baseline(api, server)
    lines_before = len(read_lines(api))
    with ExitStack() as stack:
        established = Established(connect(api, stack) for _ in range(ESTABLISHED))
        established.send_requests()
        silent = [connect(api, stack) for _ in range(SILENT)]
        waiting = [connect(api, stack) for _ in range(WAITING)]
        for connection in waiting:
            connection.request("GET", UNKNOWN_PATH)
        time.sleep(1)
        assert api.workers() == baseline.workers, "A worker was lost."
        cpu_before = {worker: cpu_seconds(worker) for worker in baseline.workers}
        time.sleep(1)
        cpu = {worker: cpu_seconds(worker) - before for worker, before in cpu_before.items()}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            established.send_requests()
            time.sleep(0.05)
        assert api.workers() == baseline.workers, "A worker was lost."
        for connection in silent:
            connection.close()
        for connection in waiting:
            assert read_status(connection, "a request that waited for a descriptor") == 404
            connection.close()
        established.send_requests()
    baseline.assert_unchanged()
    baseline.assert_descriptors_closed()
    lines = read_lines(api)[lines_before:]
    print_figures(
        connections=ESTABLISHED + SILENT + WAITING,
        responses_on_accepted_connections=established.responses,
        of_these_with_connection_close=established.closed,
        slowest_of_these=f"{established.slowest:.2f} s",
        responses_after_a_wait_for_a_descriptor=len(waiting),
        cpu_seconds_of_a_worker_in_a_second=f"{max(cpu.values()):.2f}",
        lines_in_the_log=len(lines),
    )
    assert max(cpu.values()) <= MAX_CPU, f"A worker uses CPU in an idle loop: {cpu}"
    return lines


def read_lines(api: Api) -> list[str]:
    return [line for line in api.log.read_text().splitlines() if LINE.search(line)]


class Established:
    """Connections that the workers accepted while they had free descriptors."""

    def __init__(self, connections: Iterable[HTTPConnection]) -> None:
        self._connections = list(connections)
        self.responses = self.closed = 0
        self.slowest = 0.0  # seconds

    def send_requests(self) -> None:
        """Send a request on each connection at once. Raises AssertionError if one is lost.

        A worker without free descriptors can announce in a response that it closes the connection
        (RFC 9112, section 9.6). Such a connection is not used again.
        """
        started = time.monotonic()
        for connection in self._connections:
            connection.request("GET", "/livez")
        for connection in self._connections:
            assert read_status(connection, "a request on an accepted connection") == 200
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.responses += len(self._connections)
        # http.client closes a connection after a response with `Connection: close`.
        still_open = [connection for connection in self._connections if connection.sock]
        self.closed += len(self._connections) - len(still_open)
        self._connections = still_open


def connect(api: Api, stack: ExitStack) -> HTTPConnection:
    connection = HTTPConnection(*api.address, timeout=RESPONSE_TIMEOUT)
    stack.callback(connection.close)
    connection.connect()
    return connection
