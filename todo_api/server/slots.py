"""One folder of metrics for all workers, and a slot in it for each."""

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

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker


MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it


PREFIX = "todo-api-metrics-"


NEW = 60  # seconds


# Of this process, once it is a worker; the master has none.
slot: int | None = None


@cache
def share_metrics() -> None:
    """Have all metrics that this process and its workers make from now on in one fresh folder.

    A reload keeps it. An upgrade's new master makes its own, whatever the old one left it in the
    environment. It is removed when the master exits, or by a later master if it was killed.
    """
    parent = MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())
    remove_orphans(parent)
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent)
    # For as long as the master or one of its workers lives: they inherit it.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: slot)  # type: ignore[no-untyped-call]
    atexit.register(remove, folder)


def remove(folder: str) -> None:
    # A worker inherits what its master does at exit.
    if slot is None:
        shutil.rmtree(folder)


def remove_orphans(parent: Path) -> None:
    """Remove the folders that nobody locks. A new one is left alone: it is about to be locked."""
    for folder in parent.glob(f"{PREFIX}*"):
        # Somebody else's, still locked, or just removed.
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < NEW:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """In the master: give the new worker the lowest slot that no other has."""
    taken = {other.slot for other in server.WORKERS.values()}
    worker.slot = next(number for number in count() if number not in taken)


def post_fork(_: Arbiter, worker: Worker) -> None:
    """In the worker, before it loads the application."""
    global slot  # noqa: PLW0603  a process is one worker
    slot = worker.slot
    forget_gauges(worker)


def child_exit(_: Arbiter, worker: Worker) -> None:
    """In the master, when a worker has died."""
    forget_gauges(worker)


def forget_gauges(worker: Worker) -> None:
    """Remove what was true of the slot's last worker only while it lived."""
    mark_process_dead(worker.slot)  # type: ignore[no-untyped-call]
