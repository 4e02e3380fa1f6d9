"""The threads, descriptors and connections of gunicorn's workers, from /proc and PostgreSQL."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from fault_injection.servers import HOST, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault_injection.servers import Api, Postgres

RESPONSE_TIMEOUT = 10  # seconds for a complete request, on a machine with other work

# Seconds in which connections are opened: clearly less than `--keep-alive 1`.
OPEN_TIMEOUT = 0.4

# Seconds in which a worker closes all connections: the keep-alive timeout, the lingering close, and
# the interval of the checks for both.
CLOSE_TIMEOUT = 20

# A path without a route: its request needs a thread and no database.
UNKNOWN_PATH = "/no-such-path"


@dataclass(frozen=True)
class State:
    """The resources of a worker, which have to be the same again after any load."""

    threads: int
    descriptors: int


def read_state(worker: int) -> State:
    return State(threads=count_threads(worker), descriptors=count_descriptors(worker))


def count_threads(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def count_descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def cpu_seconds(process: int) -> float:
    """Return the CPU time of the process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def map_connections(api: Api) -> dict[tuple[str, int], int]:
    """Return the worker of each accepted connection, by the client's address and port."""
    clients: dict[str, tuple[str, int]] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
        if int(local.partition(":")[2], 16) == api.port and inode != "0":
            address, _, port = remote.partition(":")
            packed = int(address, 16).to_bytes(4, "little")
            clients[f"socket:[{inode}]"] = socket.inet_ntoa(packed), int(port, 16)
    workers: dict[tuple[str, int], int] = {}
    for worker in api.workers():
        for descriptor in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(OSError):  # the worker has just closed it
                client = clients.get(str(descriptor.readlink()))
                if client and client[1]:  # a listening socket has no client
                    workers[client] = worker
    return workers


def await_no_connections(api: Api) -> None:
    """Wait until the workers have closed every connection of a client."""
    wait_until(lambda: not map_connections(api), "no worker has a connection", CLOSE_TIMEOUT)


@contextmanager
def connections_to_each(api: Api, count: int) -> Iterator[dict[int, list[HTTPConnection]]]:
    """Open connections until each worker has accepted `count`, or raise AssertionError."""
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    while True:
        with ExitStack() as stack:
            by_worker = open_connections(api, count, stack)
            if all(len(by_worker[worker]) == count for worker in api.workers()):
                yield by_worker
                return
        accepted = {worker: len(by_worker[worker]) for worker in api.workers()}
        assert time.monotonic() < deadline, f"A worker accepts no connections: {accepted}"


def open_connections(api: Api, count: int, stack: ExitStack) -> dict[int, list[HTTPConnection]]:
    """Return up to `count` connections of each worker, all of them opened within OPEN_TIMEOUT."""
    opened: dict[tuple[str, int], HTTPConnection] = {}
    by_worker: dict[int, list[HTTPConnection]] = defaultdict(list)
    started = time.monotonic()
    while time.monotonic() < started + OPEN_TIMEOUT:
        for _ in range(count):
            connection = HTTPConnection(HOST, api.port, timeout=RESPONSE_TIMEOUT)
            stack.callback(connection.close)
            connection.connect()
            opened[connection.sock.getsockname()] = connection
        time.sleep(0.01)
        by_worker.clear()
        workers = map_connections(api)
        for client, connection in opened.items():
            if client in workers and len(by_worker[workers[client]]) < count:
                by_worker[workers[client]].append(connection)
        if all(len(by_worker[worker]) == count for worker in api.workers()):
            break
    return by_worker


def read_status(connection: HTTPConnection, request: str) -> int:
    """Return the status of the response. Raises AssertionError if none comes."""
    try:
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException) as error:
        raise AssertionError(f"No response to {request}: {error!r}") from error
    return response.status


def assert_every_thread_serves(api: Api, server: Postgres, threads: int) -> None:
    """Raise AssertionError unless every thread of every worker serves requests.

    A lock in the database blocks all threads of each worker except one: a worker has one slot fewer
    than threads. The last thread has to serve requests that need no database.
    """
    workers = api.workers()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    blocked = threads - 1
    path = f"/api/{uuid.uuid4()}/tasks"
    with ExitStack() as stack:
        lock = stack.enter_context(server.connect())
        observer = stack.enter_context(server.connect())
        with lock.transaction():
            lock.execute("LOCK TABLE tasks, users IN ACCESS EXCLUSIVE MODE")
            by_worker = stack.enter_context(connections_to_each(api, blocked))
            for connection in (each for worker in workers for each in by_worker[worker]):
                connection.request("GET", path)
            wait_until(
                lambda: observer.execute(waiting).fetchone() == (blocked * len(workers),),
                f"{blocked} requests of each of {len(workers)} workers wait for the database",
                4,
            )
            with connections_to_each(api, 2) as more:
                for first, second in more.values():
                    first.request("GET", UNKNOWN_PATH)
                    second.request("GET", "/livez")
                for worker, (first, second) in more.items():
                    state = f"worker {worker}, with {blocked} blocked threads"
                    assert read_status(first, f"{UNKNOWN_PATH} at {state}") == 404
                    assert read_status(second, f"/livez at {state}") == 200
        for connection in (each for worker in workers for each in by_worker[worker]):
            status = read_status(connection, "a request that waited for the database")
            assert status == 200, status


def assert_concurrent_requests_succeed(api: Api, count: int) -> None:
    """Send `count` requests and one for /livez before the first response is read."""
    with ExitStack() as stack:
        requests = []
        for path in [UNKNOWN_PATH] * count + ["/livez"]:
            connection = HTTPConnection(HOST, api.port, timeout=RESPONSE_TIMEOUT)
            stack.callback(connection.close)
            connection.request("GET", path)
            requests.append((connection, path))
        for connection, path in requests:
            status = read_status(connection, f"{path}, one of {count + 1} concurrent requests")
            assert status == (200 if path == "/livez" else 404), (path, status)
