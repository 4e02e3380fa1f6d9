"""gunicorn is reloaded, upgraded, stopped, recycled and bereft of a worker, under load.

Half of the clients keep their connections, the others open one for each request. None of their
requests may fail, but for those that a killed worker had in its hands, and for connections that
are refused once the server is told to stop.
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
from fault_injection.servers import children, ended, postgresql, serving, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fault_injection.servers import Api

CLIENTS = 8
# All of them may be with the database through one worker, as happens while others start: this part
# asks whether a request is dropped, not when one is too many (the admission limiter's 503).
SETTINGS = {"WEB_THREADS": "10"}
SECONDS = 60  # in which a reload, an upgrade or a stop has to end


class Caller(threading.Thread):
    """A client that asks again and again, on one connection or on one for each request.

    It never sends a request twice: one without the right answer is a failure. A connection that is
    refused is one, too, but where `until_refused` was set before; that ends the client.
    """

    def __init__(self, address: tuple[str, int], *, keep: bool) -> None:
        super().__init__(daemon=True)
        self._client = Client(address)
        self._keep = keep
        self._path = f"/api/{uuid.uuid4()}/tasks"
        self.stop_asked = threading.Event()
        self.until_refused = threading.Event()
        self.answered = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        while not self.stop_asked.is_set() and self.call():
            time.sleep(random.uniform(0, 0.04))
        self._client.close()

    def call(self) -> bool:
        """Whether to go on."""
        request_id = str(uuid.uuid4())
        headers = {"X-Request-Id": request_id} | ({} if self._keep else {"Connection": "close"})
        begun = time.monotonic()
        try:
            answer = self._client.request("POST", self._path, {"title": "Buy oats"}, headers)
        except ConnectionRefusedError as refused:
            if self.until_refused.is_set():
                return False
            self.failed.append(f"{request_id} {refused!r}")
        except (OSError, HTTPException) as error:
            self.failed.append(f"{request_id} {error!r}")
        else:
            self.answered += 1
            if answer.status != 201:
                self.failed.append(f"{request_id} {answer}")
        self.slowest = max(self.slowest, time.monotonic() - begun)
        return True


class Load:
    """Some clients, and what became of their requests."""

    def __init__(self, api: Api) -> None:
        self.callers = [Caller(api.address, keep=bool(number % 2)) for number in range(CLIENTS)]

    @property
    def answered(self) -> int:
        return sum(caller.answered for caller in self.callers)

    @property
    def failed(self) -> list[str]:
        return [each for caller in self.callers for each in caller.failed]

    def await_more(self, requests: int = CLIENTS) -> None:
        """Wait until so many more have been answered."""
        enough = self.answered + requests
        wait_until(lambda: self.answered >= enough, f"{requests} more answers", SECONDS)

    def end(self) -> None:
        for caller in self.callers:
            caller.stop_asked.set()
        for caller in self.callers:
            caller.join(SECONDS)
        assert not any(caller.is_alive() for caller in self.callers), "A client waits for ever."

    def show(self, **figures: object) -> None:
        print_figures(
            **figures,
            requests=self.answered,
            failed=len(self.failed),
            longest_wait=f"{max(caller.slowest for caller in self.callers):.2f} s",
        )


@contextmanager
def load(api: Api) -> Iterator[Load]:
    """Clients that ask all the while; at the end, all that they asked has been answered."""
    clients = Load(api)
    for caller in clients.callers:
        caller.start()
    try:
        clients.await_more()
        yield clients
        clients.await_more()
    finally:
        clients.end()


def none_failed(clients: Load) -> None:
    assert not clients.failed, f"{len(clients.failed)} failed: {clients.failed[:10]}"


def reload(api: Api, clients: Load) -> None:
    """HUP: the settings anew, other workers."""
    assert api.process
    before = set(api.workers())
    api.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: len(api.workers()) == len(before) and not before & set(api.workers()),
        "all workers are others",
        SECONDS,
    )
    clients.await_more()


def upgrade(api: Api, clients: Load) -> int:
    """USR2 and TERM: another master, of the code as it is now. Its process."""
    assert api.process
    workers = set(api.workers())
    api.process.send_signal(signal.SIGUSR2)

    def masters() -> list[int]:
        return [
            each for each in set(api.workers()) - workers if len(children(each)) >= len(workers)
        ]

    wait_until(lambda: bool(masters()), "the new master has its workers", SECONDS)
    (new,) = masters()
    clients.await_more()
    api.process.terminate()
    assert api.process.wait(SECONDS) == 0
    clients.await_more()
    return new


def terminate(master: int) -> None:
    """Stop a master that is no child of ours."""
    os.kill(master, signal.SIGTERM)
    wait_until(lambda: ended(master), "the server has stopped", SECONDS)


def stop(api: Api, clients: Load) -> None:
    """TERM: all that was accepted is answered, and then nothing is."""
    assert api.process
    for caller in clients.callers:
        caller.until_refused.set()
    api.process.terminate()
    assert api.process.wait(SECONDS) == 0
    for caller in clients.callers:
        caller.join(SECONDS)
    # Of a connection that the kernel has accepted in the moment in which the last worker closes its
    # listener, no worker knows: to its client it was refused a little late.
    log = api.log.read_text()
    dropped = [each for each in clients.failed if each.split()[0] in log]
    assert not dropped, dropped
    late = [each for each in clients.failed if "Reset" in each or "Disconnected" in each]
    assert late == clients.failed, clients.failed
    assert len(late) <= 1, late


def lose_a_worker(api: Api, clients: Load) -> None:
    """KILL: another takes its place, and only what it had in its hands is lost."""
    killed = api.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(
        lambda: len(api.workers()) == 2 and killed not in api.workers(),
        "another worker is there",
        SECONDS,
    )
    clients.await_more(100)
    assert len(clients.failed) <= CLIENTS, clients.failed


def recycle(api: Api, clients: Load, times: int) -> int:
    """Wait until workers have ended of themselves so often; how many there have been."""
    seen = set(api.workers())
    first = len(seen)

    def enough() -> bool:
        seen.update(api.workers())
        return len(seen) >= first + times

    wait_until(enough, f"{times} workers have been replaced", 20 * SECONDS)
    clients.await_more()
    return len(seen) - first


def run(*, short: bool) -> None:
    """Do each of it under load: none of the requests fails."""
    with postgresql() as server:
        url = server.url()
        reloads = 2 if short else 20
        with serving(url, **SETTINGS) as api:
            with load(api) as clients:
                for _ in range(reloads):
                    reload(api, clients)
            none_failed(clients)
            clients.show(reloads=reloads)

            with load(api) as clients:
                new = upgrade(api, clients)
            terminate(new)
            none_failed(clients)
            clients.show(upgrades=1)

        times = 2 if short else 20
        recycled = "--max-requests 300 --max-requests-jitter 200"
        with serving(url, GUNICORN_CMD_ARGS=recycled, **SETTINGS) as api:
            with load(api) as clients:
                times = recycle(api, clients, times)
            none_failed(clients)
            clients.show(recycled_workers=times)

        for _ in range(1 if short else 5):
            with serving(url, LOG_LEVEL="info", **SETTINGS) as api:
                with load(api) as clients:
                    lose_a_worker(api, clients)
                clients.show(killed_workers=1)
                clients = Load(api)
                for caller in clients.callers:
                    caller.start()
                clients.await_more()
                stop(api, clients)
                clients.show(stops=1)
