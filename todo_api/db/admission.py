"""Load shedding: limit how many requests of a process use the database at a time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from psycopg_pool import TooManyRequests

if TYPE_CHECKING:
    from todo_api.metrics import Metrics


# Seconds in which no request finishes while all slots are busy: the database is stalled then. A
# shorter stall, such as that of a checkpoint or of a busy disk, costs time and no error. It is less
# than a second, which is what probes usually wait: a request that waits for a slot may hold the
# last free thread, and /livez waits with it.
STALL_TIMEOUT = 0.8


# The same after a request has failed: long enough for the next one to show that all is well.
RETRY_TIMEOUT = 0.1


class AdmissionLimiter:
    """Limits how many requests of a process use the database at a time.

    When all slots are busy, a request waits while other requests keep finishing. When none has
    finished for `stall_timeout` seconds, the database is stalled: the request that waits is refused
    (503), and each later one that finds no free slot at once, until a request finishes.

    A worker has one slot fewer than threads, so one thread is free for requests that need no
    database, such as /livez. A request that waits for a slot holds that thread: /livez waits for it
    once in a stall, for `stall_timeout` at most. A worker with a single thread has a single slot:
    no request is ever refused here, and /livez waits for the requests before it.
    """

    def __init__(
        self,
        slots: int,
        metrics: Metrics,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        retry_timeout: float = RETRY_TIMEOUT,
    ) -> None:
        self._free_slots = slots
        self._metrics = metrics
        self._stall_timeout = stall_timeout
        self._retry_timeout = retry_timeout
        self._has_failed = False
        self._stalled_at = 0.0
        self._slot_released = threading.Condition()

    @property
    def free_slots(self) -> int:
        return self._free_slots

    def acquire(self, deadline: float) -> None:
        """Take a slot, and wait for one until the database is stalled or `deadline` has come.

        Raises TooManyRequests if there is none then.
        """
        with self._slot_released:
            while not self._free_slots:
                seconds = min(self._stalled_at, deadline) - time.monotonic()
                if seconds <= 0:
                    self._metrics.sheds.labels("admission").inc()
                    raise TooManyRequests("all slots are busy")
                self._slot_released.wait(seconds)
            self._free_slots -= 1
            # A request that follows a failure proves nothing before it has finished.
            timeout = self._retry_timeout if self._has_failed else self._stall_timeout
            self._stalled_at = max(self._stalled_at, time.monotonic() + timeout)

    def release(self, *, succeeded: bool) -> None:
        """Give the slot back; `succeeded` tells whether the database has answered."""
        with self._slot_released:
            self._free_slots += 1
            self._has_failed = not succeeded
            if succeeded:
                self._stalled_at = time.monotonic() + self._stall_timeout
            self._slot_released.notify()
