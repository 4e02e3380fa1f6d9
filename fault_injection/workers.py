"""gunicorn's workers are killed, alternately one of them and all at once, while clients write."""

from __future__ import annotations

import itertools
import os
import random
import signal
from contextlib import suppress

from fault_injection.journal import write_during
from fault_injection.servers import postgresql, serving, wait_until


def run(*, short: bool) -> None:
    numbers = itertools.count()

    def kill() -> None:
        workers = api.workers()
        killed = random.sample(workers, 1) if next(numbers) % 2 == 0 else workers
        for worker in killed:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not set(killed) & set(api.workers()), "gunicorn has noticed it")

    with postgresql() as server, serving(server.url()) as api:
        times, writes = (3, 600) if short else (50, 26_000)
        write_during(kill, times=times, writes=writes, api=api, server=server)
