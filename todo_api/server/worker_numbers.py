"""A folder in which all workers write their metrics. Each worker has a number for its files."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

MEMORY = Path("/dev/shm")  # noqa: S108  mkdtemp makes a folder of our own in it
PREFIX = "todo-api-metrics-"
MIN_ORPHAN_AGE = 60  # seconds


class WorkerNumbers:
    """The workers' numbers, which are in the names of their files.

    A new worker gets the number of a worker that has ended, and continues its files.

    `pre_fork`, `post_fork` and `child_exit` are gunicorn's hooks of these names.
    """

    def __init__(self) -> None:
        self.own: int | None = None  # the number of this worker; in the master, it is None
        self._numbers: WeakKeyDictionary[Worker, int] = WeakKeyDictionary()

    def pre_fork(self, server: Arbiter, worker: Worker) -> None:
        """In the master: give the new worker the lowest free number."""
        taken = {self._numbers[other] for other in server.WORKERS.values()}
        self._numbers[worker] = next(number for number in count() if number not in taken)

    def post_fork(self, _: Arbiter, worker: Worker) -> None:
        """In the worker, before it loads the application: store its number."""
        self.own = self._numbers[worker]
        self._remove_gauges(worker)

    def child_exit(self, _: Arbiter, worker: Worker) -> None:
        """In the master, after a worker has ended: remove its gauges."""
        self._remove_gauges(worker)

    def _remove_gauges(self, worker: Worker) -> None:
        """Remove the gauges of the last worker with this number, which has ended."""
        mark_process_dead(self._numbers[worker])  # type: ignore[no-untyped-call]


@cache
def make_metrics_folder() -> WorkerNumbers:
    """Make a folder for the metrics of all workers; return the numbers of the workers.

    When gunicorn reloads its configuration, this function returns the same object again. The new
    master of an upgrade makes a new folder, although it inherits the old master's environment. A
    master removes its folder when it exits. If a master is killed, a later one removes its folder.
    """
    numbers = WorkerNumbers()
    parent = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    remove_orphans(parent)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    # Workers inherit the lock, which therefore ends with the last process of this server.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: numbers.own)  # type: ignore[no-untyped-call]
    atexit.register(remove_folder, folder, numbers)
    return numbers


def remove_folder(folder: str, numbers: WorkerNumbers) -> None:
    """Remove the folder, but not in a worker, which inherits the master's exit functions."""
    if numbers.own is None:
        shutil.rmtree(folder)


def remove_orphans(parent: Path) -> None:
    """Remove folders that no process locks. New folders, which may not be locked yet, stay."""
    for folder in parent.glob(f"{PREFIX}*"):
        # OSError: the folder belongs to another user, is locked, or has just been removed.
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < MIN_ORPHAN_AGE:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
