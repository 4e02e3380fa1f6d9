"""The database sleeps when a request comes, and takes two seconds to wake up.

As hosted databases do that are suspended: connects are held meanwhile, or refused. The request
waits for it, within its deadline, and the API does not storm the database with connects.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

from faults import table
from faults.clients import Client
from faults.lost_answers import through
from faults.proxy import Proxy
from faults.servers import await_that, postgresql, serving

if TYPE_CHECKING:
    from collections.abc import Callable

ASLEEP = 2.0  # seconds
DEADLINE = 5.0  # seconds, REQUEST_TIMEOUT
CLIENTS = 20


def run(*, short: bool) -> None:
    rounds = 1 if short else 5
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(through(server, proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        ways = {"held": proxy.hold, "refused": proxy.refuse, "turned away": proxy.turn_away}
        for name, sleep in ways.items():
            for _ in range(rounds):
                wake(name, sleep, proxy, api.address)


def wake(name: str, sleep: Callable[[], None], proxy: Proxy, address: tuple[str, int]) -> None:
    user = uuid.uuid4()
    tasks = f"/api/{user}/tasks"
    with Client(address) as client:
        await_that(lambda: client.request("GET", tasks).status == 200, "it is well before")
        sleep()
        proxy.cut()
        before = proxy.connects
        waking = threading.Timer(ASLEEP, proxy.forward)
        waking.start()
        begun = time.monotonic()
        first = client.request("POST", tasks, {"title": "Oats"}, {"Idempotency-Key": "first"})
        seconds = time.monotonic() - begun
        waking.join()
        connects = proxy.connects - before
    table(connects_are=name, first_answer=first.status, after=f"{seconds:.2f} s", connects=connects)
    assert first.status == 201, first
    assert seconds < DEADLINE
