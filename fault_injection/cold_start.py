"""The database is suspended, as hosted databases are when idle, and needs two seconds to start.

Meanwhile connection attempts wait, are refused, or are reset. The first request waits for the
database and succeeds within its deadline. The number of connection attempts stays small, even if
other clients send requests at the same time.
"""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.proxy import Proxy
from fault_injection.servers import postgresql, serving, url_through_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fault_injection.servers import Api

START_SECONDS, SHORT_START_SECONDS = 2.0, 1.0  # that the database needs to start
DEADLINE = 5.0  # seconds, REQUEST_TIMEOUT
READERS = 20  # other clients, which read without an end
MAX_CONNECTS = 40  # of two workers with three connections each, until requests succeed again
SETTLE_SECONDS = 1.0  # in which the API opens all connections that it wants


def run(*, short: bool) -> None:
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(url_through_proxy(server.url(), proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        modes = {"delayed": proxy.hold, "refused": proxy.refuse, "reset": proxy.accept_and_reset}
        seconds = SHORT_START_SECONDS if short else START_SECONDS
        for name, suspend in modes.items():
            for _ in range(1 if short else 5):
                start_database(name, suspend, proxy, api, seconds)


def start_database(
    name: str, suspend: Callable[[], None], proxy: Proxy, api: Api, start_seconds: float
) -> None:
    """Suspend the database, send a request, and check it and the number of connects."""
    tasks = f"/api/{uuid.uuid4()}/tasks"
    with Client(api.address) as client:
        assert client.request("GET", tasks).status == 200
        time.sleep(SETTLE_SECONDS)
        connects_before = count_connects(api)
        suspend()
        proxy.reset_connections()
        timer = threading.Timer(start_seconds, proxy.forward)
        timer.start()
        started = time.monotonic()
        with readers(api, tasks):
            first = client.request("POST", tasks, {"title": "Oats"})
            seconds = time.monotonic() - started
            timer.join()
            time.sleep(SETTLE_SECONDS)
        connects = count_connects(api) - connects_before
        listed = client.request("GET", tasks)
    print_figures(connects_are=name)
    print_figures(
        **{"status of the first response": first.status},
        **{"  after": f"{seconds:.2f} s"},
        connection_attempts=connects,
    )
    assert first.status == 201, first
    assert seconds < DEADLINE, f"{seconds:.2f} s"
    assert [task["id"] for task in listed.json] == [first.json["id"]], listed
    assert connects <= MAX_CONNECTS, f"{connects} connects"


def count_connects(api: Api) -> int:
    """Return the number of the API's connection attempts to its database."""
    counts = api.metrics()
    return int(
        counts["todo_database_connections_opened_total"]
        + counts["todo_database_connect_failures_total"]
    )


@contextmanager
def readers(api: Api, path: str) -> Iterator[None]:
    """Run READERS clients that read; the first reads begin 0.1 s later."""
    stop = threading.Event()

    def read_until_stopped() -> None:
        with Client(api.address) as client:
            while not stop.wait(0.1):
                client.request("GET", path)

    threads = [threading.Thread(target=read_until_stopped, daemon=True) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
