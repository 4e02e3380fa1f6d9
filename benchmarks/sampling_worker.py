"""A gunicorn worker that samples its own stack, for profile_operations.py."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from todo_api.server.worker import Worker

if TYPE_CHECKING:
    from types import FrameType

INTERVAL = 0.001  # seconds

Stack = tuple[tuple[str, str], ...]


class SampledWorker(Worker):
    """Serves by one thread, the main one, at which alone signals arrive, and samples its stack.

    From one SIGUSR1 to the next. At its end it writes to the file SAMPLES how often it was where:
    pairs of a stack, the innermost frame first, and a number.
    """

    def run(self) -> None:
        self.stacks: Counter[Stack] = Counter()
        self.sampling = False
        signal.signal(signal.SIGUSR1, self.begin_or_end)
        signal.signal(signal.SIGALRM, self.sample)
        self._prepare()
        supervisor = threading.Thread(target=self._supervise)
        supervisor.start()
        self._serve()
        supervisor.join()
        Path(os.environ["SAMPLES"]).write_text(json.dumps(list(self.stacks.items())))

    def begin_or_end(self, *_: object) -> None:
        self.sampling = not self.sampling
        interval = INTERVAL if self.sampling else 0
        signal.setitimer(signal.ITIMER_REAL, interval, interval)

    def sample(self, _: int, frame: FrameType | None) -> None:
        stack = []
        while frame:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self.stacks[tuple(stack)] += 1
