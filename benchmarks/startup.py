"""Measure the seconds from a start to the first response 200 of /health: `make bench-startup`.

It starts `make run` in a new folder and in an existing folder, and gunicorn with a running and
migrated database.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from todo_api.commands.embedded import Cluster, temporary_cluster

ROOT = Path(__file__).parent.parent
SOURCE = ["todo_api", "migrations", "wsgi.py", "gunicorn.conf.py", "pyproject.toml"]
ROUNDS = 7
LIMITS = {"new folder": 10, "existing folder": 3, "gunicorn alone": 2}  # seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start(folder: Path, module: str, **environ: str) -> float:
    """Start the module in the folder, wait for /health, and stop it. Return the seconds."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    settings = {"PORT": str(port), "AUTH_MODE": "none", "PYTHONPATH": str(folder)} | environ
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=folder,
        env=inherited | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.monotonic() < started + 60:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return time.monotonic() - started
            except OSError:
                time.sleep(0.01)
        raise TimeoutError(module)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in LIMITS}
    with temporary_cluster() as cluster:
        database_url = cluster.create_database("migrated")
        for number in range(ROUNDS):
            with tempfile.TemporaryDirectory(dir="/tmp") as name:
                folder = Path(name)
                folder.chmod(0o755)
                for part in SOURCE:
                    (folder / part).symlink_to(ROOT / part)
                # The data must not be outside the new folder (see ROOT_HOME in account.py).
                assert Cluster(folder / ".dev").data.is_relative_to(folder)
                times["new folder"].append(start(folder, "todo_api.commands.run"))
                times["existing folder"].append(start(folder, "todo_api.commands.run"))
                if number == 0:  # the first run migrates the database
                    start(folder, "todo_api.commands.run", DATABASE_URL=database_url)
                seconds = start(folder, "gunicorn", DATABASE_URL=database_url)
                times["gunicorn alone"].append(seconds)
    for name, seconds_of_rounds in times.items():
        median, maximum = statistics.median(seconds_of_rounds), max(seconds_of_rounds)
        print(f"{name:16} median {median:5.2f} s, maximum {maximum:5.2f} s, limit {LIMITS[name]} s")


if __name__ == "__main__":
    main()
