"""Settings of gunicorn for the peers and upper bounds, as in this project's gunicorn.conf.py."""

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
    """Set `worker.slot`, which the worker class of this API needs. Other classes ignore it."""
    worker.slot = len(server.WORKERS)
