"""`make run` in a folder of its own: the process, what it is asked, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fault_injection.servers import free_port
from tests.support import ROOT
from todo_api.commands import embedded

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = ["todo_api", "migrations", "wsgi.py", "gunicorn.conf.py", "pyproject.toml"]
USER = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
TASKS = f"/api/{USER}/tasks"


def link_source(folder: Path) -> None:
    """Make a folder in which the server can be run: the source, but none of this run's data."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)


class Server:
    """What `make run` starts, by the command that it runs."""

    def __init__(self, folder: Path, user: int | None = None, **environ: str) -> None:
        self.folder = folder
        self.port = environ.pop("PORT", None) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "AUTH_MODE")}
        self.environ = kept | {"PORT": str(self.port), "PYTHONPATH": str(folder)} | environ
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "todo_api.commands.run"],
            cwd=folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=user,
        )

    def await_health(self) -> float:
        """Seconds from the start to the first 200 of /health."""
        while time.monotonic() < self.started + 30 and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return time.monotonic() - self.started
            except OSError:
                time.sleep(0.02)
        pytest.fail(self.end())

    def get(self, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | self.authorization(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)

    def authorization(self) -> dict[str, str]:
        """A token from `make token`'s command, in the folder of the server."""
        made = subprocess.run(
            [sys.executable, "-m", "todo_api.commands.token", USER],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return {"Authorization": f"Bearer {made.stdout.strip()}"}

    def crash(self, *, database: bool) -> None:
        """Kill every process of it at once, that of the database only if told to."""
        processes = [self.process.pid, *descendants(self.process.pid)]
        postmaster = int((data_of(self.folder) / "postmaster.pid").read_text().splitlines()[0])
        for process in processes:
            if database or process not in (postmaster, *descendants(postmaster)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.communicate(timeout=30)

    def end(self, how: signal.Signals = signal.SIGINT) -> str:
        """Send the signal as a terminal does, to every process of the group; the output."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        return self.process.communicate(timeout=30)[0]


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Server]:
    """A server in the folder, ready; it is ended afterwards."""
    server = Server(folder, **options)
    try:
        server.await_health()
        yield server
    finally:
        server.end()


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [each for child in children for each in (int(child), *descendants(int(child)))]


def data_of(folder: Path) -> Path:
    """Where a server in the folder keeps its database."""
    return embedded.Cluster(folder / ".dev").data
