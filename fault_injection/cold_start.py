"""The database sleeps when a request comes, and takes two seconds to wake up.

As hosted databases do that are suspended: connects are held meanwhile, or refused. The request
waits for it, within its deadline, and the API does not storm the database with connects, however
many others ask at the same time.
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

ASLEEP, SHORT = 2.0, 1.0  # seconds
DEADLINE = 5.0  # seconds, REQUEST_TIMEOUT
OTHERS = 20  # clients that ask again and again
CONNECTS = 40  # of two workers with three connections each, until all is well
SETTLED = 1.0  # seconds after which what was opened is open


def run(*, short: bool) -> None:
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(url_through_proxy(server.url(), proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        ways = {"held": proxy.hold, "refused": proxy.refuse, "turned away": proxy.turn_away}
        for name, sleep in ways.items():
            for _ in range(1 if short else 5):
                wake(name, sleep, proxy, api, SHORT if short else ASLEEP)


def wake(name: str, sleep: Callable[[], None], proxy: Proxy, api: Api, asleep: float) -> None:
    tasks = f"/api/{uuid.uuid4()}/tasks"
    with Client(api.address) as client:
        assert client.request("GET", tasks).status == 200
        time.sleep(SETTLED)
        before = connects(api)
        sleep()
        proxy.cut()
        alarm = threading.Timer(asleep, proxy.forward)
        alarm.start()
        begun = time.monotonic()
        with asking(api, tasks):
            first = client.request("POST", tasks, {"title": "Oats"})
            seconds = time.monotonic() - begun
            alarm.join()
            time.sleep(SETTLED)
        tried = connects(api) - before
        again = client.request("GET", tasks)
    print_figures(connects_are=name)
    print_figures(
        **{"the first request is answered with": first.status},
        **{"  after": f"{seconds:.2f} s"},
        connects_meanwhile=tried,
    )
    assert first.status == 201, first
    assert seconds < DEADLINE, f"{seconds:.2f} s"
    assert [task["id"] for task in again.json] == [first.json["id"]], again
    assert tried <= CONNECTS, f"{tried} connects"


def connects(api: Api) -> int:
    """How often the API has connected to its database, or tried to."""
    counts = api.metrics()
    return int(
        counts["todo_database_connections_opened_total"]
        + counts["todo_database_connect_failures_total"]
    )


@contextmanager
def asking(api: Api, path: str) -> Iterator[None]:
    """Clients that read all the while, beginning a little later."""
    stop = threading.Event()

    def ask_on() -> None:
        with Client(api.address) as client:
            while not stop.wait(0.1):
                client.request("GET", path)

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in range(OTHERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
