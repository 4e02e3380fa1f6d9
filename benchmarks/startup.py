"""Seconds from a start to the first 200 of /health; `make bench-startup` runs it.

Of `make run` on a fresh folder and on one that is there, and of gunicorn alone on a database that
is up and migrated.
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
LIMITS = {"fresh folder": 10, "existing folder": 3, "gunicorn alone": 2}  # seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def start(folder: Path, module: str, **environ: str) -> float:
    """Start the module in the folder, await /health, stop it."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    settings = {"PORT": str(port), "AUTH_MODE": "none", "PYTHONPATH": str(folder)} | environ
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=folder,
        env=kept | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.monotonic() < begun + 60:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return time.monotonic() - begun
            except OSError:
                time.sleep(0.01)
        raise TimeoutError(module)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in LIMITS}
    with temporary_cluster() as cluster:
        up = cluster.create_database("up")
        for number in range(ROUNDS):
            with tempfile.TemporaryDirectory(dir="/tmp") as name:
                folder = Path(name)
                folder.chmod(0o755)
                for part in SOURCE:
                    (folder / part).symlink_to(ROOT / part)
                assert Cluster(folder / ".dev").data.is_relative_to(folder)
                taken["fresh folder"].append(start(folder, "todo_api.commands.run"))
                taken["existing folder"].append(start(folder, "todo_api.commands.run"))
                if number == 0:  # which migrates the database that is up
                    start(folder, "todo_api.commands.run", DATABASE_URL=up)
                taken["gunicorn alone"].append(start(folder, "gunicorn", DATABASE_URL=up))
    for name, seconds in taken.items():
        median, most = statistics.median(seconds), max(seconds)
        print(f"{name:16} median {median:5.2f} s, most {most:5.2f} s, limit {LIMITS[name]} s")


if __name__ == "__main__":
    main()
