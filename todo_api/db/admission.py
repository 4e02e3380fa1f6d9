"""Load shedding: limit how many requests of a process use the database at a time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from psycopg_pool import TooManyRequests

if TYPE_CHECKING:
    from todo_api.metrics import Metrics


# Seconds. If all slots are busy and no request finishes for this time, the database counts as
# stalled. During a shorter pause, such as a checkpoint or a busy disk, requests wait and do not
# fail. The value must be less than 1 s, the usual timeout of probes: a request that waits for a
# slot may occupy the last free thread, and then /livez waits, too.
STALL_TIMEOUT = 0.8


# Seconds. After a failed request, this time replaces STALL_TIMEOUT. It is long enough for the next
# request to succeed if the database works again.
STALL_TIMEOUT_AFTER_FAILURE = 0.1


class AdmissionLimiter:
    """Limits how many requests of a process use the database at a time.

    When all slots are busy, a request waits while other requests keep finishing. When no request
    has finished for `stall_timeout` seconds, the database counts as stalled: the waiting requests
    are refused (503), and so is, immediately, each new request that finds no free slot. The stall
    ends when a request finishes.

    A worker has one slot fewer than threads, so one thread is free for requests that need no
    database, such as /livez. If a request waits for a slot on that thread, /livez waits, too: at
    most one time per stall, for at most `stall_timeout`. A worker with a single thread has a single
    slot: the limiter refuses no request, and /livez waits for the requests before it.
    """

    def __init__(
        self,
        slots: int,
        metrics: Metrics,
        *,
        stall_timeout: float = STALL_TIMEOUT,
        stall_timeout_after_failure: float = STALL_TIMEOUT_AFTER_FAILURE,
    ) -> None:
        self._free_slots = slots
        self._metrics = metrics
        self._stall_timeout = stall_timeout
        self._stall_timeout_after_failure = stall_timeout_after_failure
        self._has_failed = False
        self._stalls_at = 0.0
        self._slot_released = threading.Condition()

    @property
    def free_slots(self) -> int:
        return self._free_slots

    def acquire(self, deadline: float) -> None:
        """Take a slot; if all are busy, wait until the database stalls or until `deadline`.

        `deadline` is a time.monotonic value. Raises TooManyRequests if no slot became free.
        """
        with self._slot_released:
            while not self._free_slots:
                seconds = min(self._stalls_at, deadline) - time.monotonic()
                if seconds <= 0:
                    self._metrics.refused_requests.labels("admission").inc()
                    raise TooManyRequests("all slots are busy")
                self._slot_released.wait(seconds)
            self._free_slots -= 1
            # After a failure, the start of a request does not prove that the database works again.
            timeout = self._stall_timeout_after_failure if self._has_failed else self._stall_timeout
            self._stalls_at = max(self._stalls_at, time.monotonic() + timeout)

    def release(self, *, succeeded: bool) -> None:
        """Release the slot. `succeeded` is False if the database did not respond."""
        with self._slot_released:
            self._free_slots += 1
            self._has_failed = not succeeded
            if succeeded:
                self._stalls_at = time.monotonic() + self._stall_timeout
            self._slot_released.notify()
