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
    """Serve requests in the main thread, which alone receives signals, and sample its stack.

    A SIGUSR1 starts the sampling, and the next one ends it. At its end, the worker writes a list of
    stacks with their numbers of samples to the file SAMPLES, each with the innermost frame first.
    """

    def run(self) -> None:
        self.stacks: Counter[Stack] = Counter()
        self.sampling = False
        signal.signal(signal.SIGUSR1, self.toggle_sampling)
        signal.signal(signal.SIGALRM, self.sample)
        self._prepare()
        supervisor = threading.Thread(target=self._supervise)
        supervisor.start()
        self._serve()
        supervisor.join()
        Path(os.environ["SAMPLES"]).write_text(json.dumps(list(self.stacks.items())))

    def toggle_sampling(self, *_: object) -> None:
        self.sampling = not self.sampling
        interval = INTERVAL if self.sampling else 0
        signal.setitimer(signal.ITIMER_REAL, interval, interval)

    def sample(self, _: int, frame: FrameType | None) -> None:
        stack = []
        while frame:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self.stacks[tuple(stack)] += 1
