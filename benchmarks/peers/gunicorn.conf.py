"""gunicorn as the project's own gunicorn.conf.py has it, for a peer or a limit."""

import os
import sys
from typing import Any

bind = f"127.0.0.1:{os.environ['PORT']}"
workers = int(os.environ["WEB_CONCURRENCY"])
worker_class = "gthread"
threads = int(os.environ["WEB_THREADS"])
max_requests = 200_000
max_requests_jitter = 20_000
keepalive = 75
worker_tmp_dir = "/dev/shm" if sys.platform == "linux" else None  # noqa: S108
control_socket_disable = True


def pre_fork(server: Any, worker: Any) -> None:
    """Give each worker a number: that of the project has it so, and no other asks."""
    worker.slot = len(server.WORKERS)
