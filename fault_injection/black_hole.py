"""The database becomes a black hole: packets are dropped, or taken without a word ever after.

Every request is answered by its deadline, everything is well again when the network is, and what a
connection still held when it was given up is done at most once, however late it comes. What the
database has begun, and hears no more of, it ends by itself: its locks bar nobody.
"""

from __future__ import annotations

import itertools
import time
import uuid
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.journal import write_through
from fault_injection.proxy import Proxy
from fault_injection.servers import postgresql, serving, url_through_proxy, wait_until

if TYPE_CHECKING:
    from fault_injection.servers import Api

DEADLINE = 1.0  # seconds, REQUEST_TIMEOUT
TOLERANCE, SHORT_TOLERANCE = 0.5, 2.0  # seconds; a short run is on machines that do much else
RECOVERY = 10.0  # seconds: a peer that has backed off sends anew after up to twice the hole


def run(*, short: bool) -> None:
    times, writes, seconds = (2, 300, 2) if short else (10, 10_000, 5)
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(url_through_proxy(server.url(), proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        begin = itertools.cycle([proxy.drop, proxy.hold])

        def fall_in() -> None:
            next(begin)()
            time.sleep(seconds)
            proxy.forward()

        journal = write_through(fall_in, times=times, writes=writes, api=api, server=server)
        back_in_the_middle = lose_in_the_middle(proxy, api)
    print_figures(
        each_for=f"{seconds} s",
        deadline=f"{DEADLINE:.2f} s",
        back_after_packets_were_dropped=f"{max(journal.pauses[0::2]):.2f} s",
        back_after_silence=f"{max(journal.pauses[1::2]):.2f} s",
        back_after_a_loss_before_the_commit=f"{back_in_the_middle:.2f} s",
    )
    limit = DEADLINE + (SHORT_TOLERANCE if short else TOLERANCE)
    assert journal.slowest < limit, f"An answer took {journal.slowest:.2f} s"
    assert max(journal.pauses) < RECOVERY, journal.pauses


def lose_in_the_middle(proxy: Proxy, api: Api) -> float:
    """Lose the network when a change is made, and not committed, until its locks are gone.

    How many seconds later than the network they are.
    """
    user = uuid.uuid4()
    with Client(api.address) as client:
        task = client.request("POST", f"/api/{user}/tasks", {"title": "Oats"}).json
        path = f"/api/{user}/tasks/{task['id']}"
        title = uuid.uuid4().hex
        proxy.lose_network(title.encode())
        answer = client.request("PATCH", path, {"title": title})
        assert answer.status == 503, answer
        # By then the API's kernel, too, has given the connection up: nothing more comes of it.
        time.sleep(3 * DEADLINE)
        proxy.forward()
        seconds = wait_until(
            lambda: client.request("PATCH", path, {"title": "Rye"}).status == 200,
            "the owner can write again",
            RECOVERY,
        )
        history = client.request("GET", path).json["revision"]
    assert history == 2, f"Changed {history} times, not twice"
    return seconds
