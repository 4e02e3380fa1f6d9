"""gunicorn is reloaded, upgraded and stopped under load, and its workers are replaced or killed.

Half of the clients keep their connections open, the others open one for each request. No request
fails, with two exceptions: requests in a killed worker, and connections after a stop has begun.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.servers import children, has_ended, postgresql, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault_injection.servers import Api

CLIENTS = 8
# While new workers start, one worker serves all clients. It has a slot for each of them, so the
# admission limiter refuses no request with 503.
SETTINGS = {"WEB_THREADS": "10"}
TIMEOUT = 60  # seconds, for a reload, an upgrade or a stop


class Caller(threading.Thread):
    """A client that sends requests until it is stopped, on one connection or on one for each.

    It never retries. A request fails if its response is not the expected one, or if its connection
    is refused. If `until_refused` is set, a refused connection is no failure and ends the client.
    """

    def __init__(self, address: tuple[str, int], *, keep: bool) -> None:
        super().__init__(daemon=True)
        self._client = Client(address)
        self._keep = keep
        self._path = f"/api/{uuid.uuid4()}/tasks"
        self.stop_asked = threading.Event()
        self.until_refused = threading.Event()
        self.responses = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        while not self.stop_asked.is_set() and self.call():
            time.sleep(random.uniform(0, 0.04))
        self._client.close()

    def call(self) -> bool:
        """Send one request. Return False if the client has to end."""
        request_id = str(uuid.uuid4())
        headers = {"X-Request-Id": request_id} | ({} if self._keep else {"Connection": "close"})
        started = time.monotonic()
        try:
            response = self._client.request("POST", self._path, {"title": "Buy oats"}, headers)
        except ConnectionRefusedError as error:
            if self.until_refused.is_set():
                return False
            self.failed.append(f"{request_id} {error!r}")
        except (OSError, HTTPException) as error:
            self.failed.append(f"{request_id} {error!r}")
        else:
            self.responses += 1
            if response.status != 201:
                self.failed.append(f"{request_id} {response}")
        self.slowest = max(self.slowest, time.monotonic() - started)
        return True


class Load:
    """CLIENTS clients, and the results of their requests."""

    def __init__(self, api: Api) -> None:
        self.callers = [Caller(api.address, keep=bool(number % 2)) for number in range(CLIENTS)]

    @property
    def responses(self) -> int:
        return sum(caller.responses for caller in self.callers)

    @property
    def failed(self) -> list[str]:
        return [failure for caller in self.callers for failure in caller.failed]

    def await_responses(self, count: int = CLIENTS) -> None:
        """Wait until the clients have received `count` more responses."""
        total = self.responses + count
        wait_until(lambda: self.responses >= total, f"{count} more responses", TIMEOUT)

    def stop(self) -> None:
        for caller in self.callers:
            caller.stop_asked.set()
        for caller in self.callers:
            caller.join(TIMEOUT)
        assert not any(caller.is_alive() for caller in self.callers), "A client does not end."

    def print_figures(self, **figures: object) -> None:
        print_figures(
            **figures,
            requests=self.responses,
            failed=len(self.failed),
            slowest_response=f"{max(caller.slowest for caller in self.callers):.2f} s",
        )


@contextmanager
def load(api: Api) -> Iterator[Load]:
    """Run clients that send requests; at the end, each of them waits for its last response."""
    clients = Load(api)
    for caller in clients.callers:
        caller.start()
    try:
        clients.await_responses()
        yield clients
        clients.await_responses()
    finally:
        clients.stop()


def assert_none_failed(clients: Load) -> None:
    assert not clients.failed, f"{len(clients.failed)} failed: {clients.failed[:10]}"


def reload(api: Api, clients: Load) -> None:
    """Send SIGHUP: gunicorn reads its settings again and replaces all workers."""
    assert api.process
    old_workers = set(api.workers())
    api.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: len(api.workers()) == len(old_workers) and not old_workers & set(api.workers()),
        "all workers are replaced",
        TIMEOUT,
    )
    clients.await_responses()


def upgrade(api: Api, clients: Load) -> int:
    """Send SIGUSR2, then SIGTERM: a new master replaces the old one. Return its process id."""
    assert api.process
    workers = set(api.workers())
    api.process.send_signal(signal.SIGUSR2)

    def masters() -> list[int]:
        return [
            child for child in set(api.workers()) - workers if len(children(child)) >= len(workers)
        ]

    wait_until(lambda: bool(masters()), "the new master has its workers", TIMEOUT)
    (new_master,) = masters()
    clients.await_responses()
    api.process.terminate()
    assert api.process.wait(TIMEOUT) == 0
    clients.await_responses()
    return new_master


def terminate(master: int) -> None:
    """Stop a master that is not a child of this process."""
    os.kill(master, signal.SIGTERM)
    wait_until(lambda: has_ended(master), "the server has stopped", TIMEOUT)


def stop(api: Api, clients: Load) -> None:
    """Send SIGTERM: accepted requests get responses, later connections are refused."""
    assert api.process
    for caller in clients.callers:
        caller.until_refused.set()
    api.process.terminate()
    assert api.process.wait(TIMEOUT) == 0
    for caller in clients.callers:
        caller.join(TIMEOUT)
    # The kernel can accept a connection just when the last worker closes its listener. No worker
    # sees this connection, and it is reset.
    log = api.log.read_text()
    dropped = [failure for failure in clients.failed if failure.split()[0] in log]
    assert not dropped, dropped
    reset = [error for error in clients.failed if "Reset" in error or "Disconnected" in error]
    assert reset == clients.failed, clients.failed
    assert len(reset) <= 1, reset


def kill_worker(api: Api, clients: Load) -> None:
    """Send SIGKILL to a worker: gunicorn replaces it, and only the requests in it fail."""
    killed = api.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(
        lambda: len(api.workers()) == 2 and killed not in api.workers(),
        "the killed worker is replaced",
        TIMEOUT,
    )
    clients.await_responses(100)
    assert len(clients.failed) <= CLIENTS, clients.failed


def await_replacements(api: Api, clients: Load, count: int) -> int:
    """Wait until `count` workers have ended at max_requests. Return how many were replaced."""
    seen = set(api.workers())
    first = len(seen)

    def is_enough() -> bool:
        seen.update(api.workers())
        return len(seen) >= first + count

    wait_until(is_enough, f"{count} workers have been replaced", 20 * TIMEOUT)
    clients.await_responses()
    return len(seen) - first


def run(*, short: bool) -> None:
    """Reload, upgrade, replace workers, kill a worker and stop the server, under load."""
    with postgresql() as server:
        url = server.url()
        reloads = 2 if short else 20
        with serving(url, **SETTINGS) as api:
            with load(api) as clients:
                for _ in range(reloads):
                    reload(api, clients)
            assert_none_failed(clients)
            clients.print_figures(reloads=reloads)

            with load(api) as clients:
                new_master = upgrade(api, clients)
            terminate(new_master)
            assert_none_failed(clients)
            clients.print_figures(upgrades=1)

        count = 2 if short else 20
        max_requests = "--max-requests 300 --max-requests-jitter 200"
        with serving(url, GUNICORN_CMD_ARGS=max_requests, **SETTINGS) as api:
            with load(api) as clients:
                count = await_replacements(api, clients, count)
            assert_none_failed(clients)
            clients.print_figures(replaced_workers=count)

        for _ in range(1 if short else 5):
            with serving(url, LOG_LEVEL="info", **SETTINGS) as api:
                with load(api) as clients:
                    kill_worker(api, clients)
                clients.print_figures(killed_workers=1)
                clients = Load(api)
                for caller in clients.callers:
                    caller.start()
                clients.await_responses()
                stop(api, clients)
                clients.print_figures(stops=1)
