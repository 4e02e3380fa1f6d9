"""The database becomes a black hole: packets are dropped, or taken without a word ever after.

Every request is answered by its deadline, and everything is well again when the network is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faults import table
from faults.lost_answers import through
from faults.proxy import Proxy
from faults.servers import postgresql, serving
from faults.writing import write_through

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.writing import Journal

DEADLINE = 1.0  # seconds, REQUEST_TIMEOUT
TOLERANCE, SHORT_TOLERANCE = 0.5, 2.0  # seconds; a short run is on machines that do much else
RECOVERY = 10.0  # seconds: a peer that has backed off sends anew after up to twice the hole


def run(*, short: bool) -> None:
    dropped = fall_into("dropped", Proxy.drop, short=short)
    silent = fall_into("silent", Proxy.hold, short=short)
    limit = DEADLINE + (SHORT_TOLERANCE if short else TOLERANCE)
    for journal in (dropped, silent):
        assert journal.slowest < limit, f"An answer took {journal.slowest:.2f} s"
        assert max(journal.pauses) < RECOVERY, journal.pauses


def fall_into(name: str, begin: Callable[[Proxy], None], *, short: bool) -> Journal:
    times, writes, seconds = (1, 200, 2) if short else (5, 5_000, 5)

    def hole() -> None:
        begin(proxy)
        time.sleep(seconds)
        proxy.forward()

    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(through(server, proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        table(the_database_is=name, for_seconds=seconds)
        return write_through(hole, times=times, writes=writes, api=api, server=server)
