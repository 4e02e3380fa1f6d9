"""The database becomes a black hole: packets are dropped, or taken without a word ever after.

Every request is answered by its deadline, everything is well again when the network is, and what a
connection still held when it was given up is done at most once, however late it comes.
"""

from __future__ import annotations

import itertools
import time

from faults import table
from faults.proxy import Proxy
from faults.servers import postgresql, serving, through
from faults.writing import write_through

DEADLINE = 1.0  # seconds, REQUEST_TIMEOUT
TOLERANCE, SHORT_TOLERANCE = 0.5, 2.0  # seconds; a short run is on machines that do much else
RECOVERY = 10.0  # seconds: a peer that has backed off sends anew after up to twice the hole


def run(*, short: bool) -> None:
    times, writes, seconds = (2, 300, 2) if short else (10, 10_000, 5)
    with (
        postgresql() as server,
        Proxy(server.address) as proxy,
        serving(through(server.url(), proxy), REQUEST_TIMEOUT=str(DEADLINE)) as api,
    ):
        begin = itertools.cycle([proxy.drop, proxy.hold])

        def fall_in() -> None:
            next(begin)()
            time.sleep(seconds)
            proxy.forward()

        journal = write_through(fall_in, times=times, writes=writes, api=api, server=server)
    table(
        each_for=f"{seconds} s",
        deadline=f"{DEADLINE:.2f} s",
        back_after_packets_were_dropped=f"{max(journal.pauses[0::2]):.2f} s",
        back_after_silence=f"{max(journal.pauses[1::2]):.2f} s",
    )
    limit = DEADLINE + (SHORT_TOLERANCE if short else TOLERANCE)
    assert journal.slowest < limit, f"An answer took {journal.slowest:.2f} s"
    assert max(journal.pauses) < RECOVERY, journal.pauses
