"""What the kernel and PostgreSQL show of gunicorn's workers: threads, descriptors, connections."""

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

ANSWER_TIMEOUT = 10  # seconds for a whole request, on machines that do much else

# Seconds in which a connection is opened and used: well within `--keep-alive 1`.
FRESH = 0.4

# Seconds in which a worker closes all connections: the keep-alive timeout, the lingering close, and
# the time until it looks.
CLOSE_TIMEOUT = 20

# No route has it, so it needs a thread and no database.
UNKNOWN_PATH = "/no-such-path"


@dataclass(frozen=True)
class State:
    """What a worker must have again after any load."""

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
            with suppress(OSError):  # closed since
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
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while True:
        with ExitStack() as stack:
            by_worker = open_connections(api, count, stack)
            if all(len(by_worker[worker]) == count for worker in api.workers()):
                yield by_worker
                return
        taken = {worker: len(by_worker[worker]) for worker in api.workers()}
        assert time.monotonic() < deadline, f"A worker accepts no connections: {taken}"


def open_connections(api: Api, count: int, stack: ExitStack) -> dict[int, list[HTTPConnection]]:
    """Return up to `count` connections of each worker, all of them opened within FRESH."""
    opened: dict[tuple[str, int], HTTPConnection] = {}
    by_worker: dict[int, list[HTTPConnection]] = defaultdict(list)
    begun = time.monotonic()
    while time.monotonic() < begun + FRESH:
        for _ in range(count):
            connection = HTTPConnection(HOST, api.port, timeout=ANSWER_TIMEOUT)
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


def read_status(connection: HTTPConnection, what: str) -> int:
    """Return the status of the response, or raise AssertionError."""
    try:
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException) as error:
        raise AssertionError(f"Not answered: {what}: {error!r}") from error
    return response.status


def assert_every_thread_serves(api: Api, server: Postgres, threads: int) -> None:
    """Raise AssertionError unless each worker answers with all of its threads.

    A lock in the database holds all threads but one of each worker, as many as the worker lets wait
    for the database. The last one has to answer what needs no database.
    """
    workers = api.workers()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    held = threads - 1
    path = f"/api/{uuid.uuid4()}/tasks"
    with ExitStack() as stack:
        lock = stack.enter_context(server.connect())
        observer = stack.enter_context(server.connect())
        with lock.transaction():
            lock.execute("LOCK TABLE tasks, users IN ACCESS EXCLUSIVE MODE")
            holding = stack.enter_context(connections_to_each(api, held))
            for connection in (each for worker in workers for each in holding[worker]):
                connection.request("GET", path)
            wait_until(
                lambda: observer.execute(waiting).fetchone() == (held * len(workers),),
                f"{held} requests of each of {len(workers)} workers wait for the database",
                4,
            )
            with connections_to_each(api, 2) as others:
                for first, second in others.values():
                    first.request("GET", UNKNOWN_PATH)
                    second.request("GET", "/livez")
                for worker, (first, second) in others.items():
                    what = f"worker {worker}, {held} of its threads being held"
                    assert read_status(first, f"{UNKNOWN_PATH} of {what}") == 404
                    assert read_status(second, f"/livez of {what}") == 200
        for connection in (each for worker in workers for each in holding[worker]):
            status = read_status(connection, "a request that waited for the database")
            assert status == 200, status


def assert_all_answered_at_once(api: Api, count: int) -> None:
    """Send so many requests and one for /livez before reading any response."""
    with ExitStack() as stack:
        sent = []
        for path in [UNKNOWN_PATH] * count + ["/livez"]:
            connection = HTTPConnection(HOST, api.port, timeout=ANSWER_TIMEOUT)
            stack.callback(connection.close)
            connection.request("GET", path)
            sent.append((connection, path))
        for connection, path in sent:
            status = read_status(connection, f"{path}, one of {count + 1} at once")
            assert status == (200 if path == "/livez" else 404), (path, status)
