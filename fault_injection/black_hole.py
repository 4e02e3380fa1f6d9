"""The database is unreachable: packets to it are dropped, or it accepts them and sends nothing.

Every request gets a response by its deadline, and requests succeed again when the network is back.
A packet of an abandoned connection can arrive later: its statement is applied at most once. The
database ends a transaction whose client is unreachable, so the locks of that transaction are freed.
"""

from __future__ import annotations

import itertools
import time
import uuid
from typing import TYPE_CHECKING

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.journal import write_during
from fault_injection.proxy import Proxy
from fault_injection.servers import postgresql, serving, url_through_proxy, wait_until
from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from fault_injection.servers import Api

DEADLINE = 1.0  # seconds, REQUEST_TIMEOUT
TOLERANCE, SHORT_TOLERANCE = 0.5, 2.0  # seconds; a short run shares its machine with other work
RECOVERY = 10.0  # seconds: TCP retransmits after up to twice the duration of the outage


def run(*, short: bool) -> None:
    times, writes, seconds = (2, 300, 2) if short else (10, 10_000, 5)
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(url_through_proxy(server.url(), proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        outages = itertools.cycle([proxy.drop_packets, proxy.hold])

        def interrupt() -> None:
            next(outages)()
            time.sleep(seconds)
            proxy.forward()

        journal = write_during(interrupt, times=times, writes=writes, api=api, server=server)
        recovery = lose_network_before_commit(proxy, api)
    print_figures(
        duration_of_an_outage=f"{seconds} s",
        deadline=f"{DEADLINE:.2f} s",
        recovery_after_dropped_packets=f"{max(journal.pauses[0::2]):.2f} s",
        recovery_after_silence=f"{max(journal.pauses[1::2]):.2f} s",
        recovery_after_a_loss_before_the_commit=f"{recovery:.2f} s",
    )
    limit = DEADLINE + (SHORT_TOLERANCE if short else TOLERANCE)
    assert journal.slowest < limit, f"A response took {journal.slowest:.2f} s"
    assert max(journal.pauses) < RECOVERY, journal.pauses


def lose_network_before_commit(proxy: Proxy, api: Api) -> float:
    """Lose the network between a change and its commit, until the API has given up.

    Return the seconds from the return of the network until the owner can write again.
    """
    user = uuid.uuid4()
    with Client(api.address) as client:
        task = client.request("POST", f"/api/{user}/tasks", {"title": "Oats"}).json
        path = f"/api/{user}/tasks/{task['id']}"
        title = uuid.uuid4().hex
        proxy.lose_network(title.encode())
        response = client.request("PATCH", path, {"title": title})
        assert response.status == 503, response
        # After this time, the API's kernel has given up the connection, too, and sends no packet.
        time.sleep(3 * DEADLINE)
        proxy.forward()
        # If the lost change was applied, the revision is another one, and each response is a 412.
        unchanged = {"If-Match": etag(task["revision"])}
        return wait_until(
            lambda: client.request("PATCH", path, {"title": "Rye"}, unchanged).status == 200,
            "the owner can change the task, which is as it was before the loss",
            RECOVERY,
        )
