"""gunicorn with the project's worker and one application of tests/apps."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from faults.servers import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# These variables make a process measure its coverage. The server inherits no others but PATH.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


@contextmanager
def worker_server(
    app: str, log: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], tuple[str, int]]]:
    """Start one worker that serves the application, and stop it at the end of the block.

    Returns the process and its address, before the server listens. Its output goes to `log`.
    """
    host, port = "127.0.0.1", free_port()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"{host}:{port}"),
                *("--worker-class", "todo_api.server.worker.Worker", "--no-control-socket"),
                *options,
                app,
            ],
            cwd=ROOT / "tests" / "apps",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | COVERAGE,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process, (host, port)
    finally:
        process.terminate()
        process.wait(60)
