"""Run the command of `make run` in a folder, send it requests, and stop it."""

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
    """Make a folder with links to the source, in which the server runs with its own data."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)


class Server:
    """The process that `make run` starts, without make."""

    def __init__(self, folder: Path, user: int | None = None, **environ: str) -> None:
        self.folder = folder
        self.port = environ.pop("PORT", None) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "AUTH_MODE")}
        self.environ = inherited | {"PORT": str(self.port), "PYTHONPATH": str(folder)} | environ
        self.token: str | None = None
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
        """Wait for the first 200 of /health; return the seconds since the start."""
        while time.monotonic() < self.started + 30 and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return time.monotonic() - self.started
            except OSError:
                time.sleep(0.02)
        pytest.fail(self.end())

    def request(self, path: str, body: object = None) -> tuple[int, Any]:
        """Send a GET, or a POST if there is a body; return the status and the JSON."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | self.authorization(),
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)

    def authorization(self) -> dict[str, str]:
        """Return the header with a token of this server, which is made once."""
        if self.token is None:
            self.token = make_token(self.folder, self.environ)
        return {"Authorization": f"Bearer {self.token}"}

    def crash(self, *, database: bool) -> None:
        """Kill every process of the server; PostgreSQL's processes only if `database` is true."""
        processes = [self.process.pid, *descendants(self.process.pid)]
        postmaster = int(
            (database_folder_of(self.folder) / "postmaster.pid").read_text().splitlines()[0]
        )
        for process in processes:
            if database or process not in (postmaster, *descendants(postmaster)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.communicate(timeout=30)

    def end(self, signal_number: signal.Signals = signal.SIGINT) -> str:
        """Signal every process of the group, as a terminal does; return the output."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal_number)
        return self.process.communicate(timeout=30)[0]


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[Server]:
    """Start a server in the folder, wait until it is ready, and stop it at the end."""
    server = Server(folder, **options)
    try:
        server.await_health()
        yield server
    finally:
        server.end()


def make_token(folder: Path, environ: dict[str, str]) -> str:
    """Return the token that the command of `make token` prints in the folder."""
    command = [sys.executable, "-m", "todo_api.commands.token", USER]
    result = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def descendants(process: int) -> list[int]:
    """Return the process ids of the children of a process, and of their children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for child in children for pid in (int(child), *descendants(int(child)))]


def database_folder_of(folder: Path) -> Path:
    """Return the data folder of the PostgreSQL that a server in the folder starts."""
    return embedded.Cluster(folder / ".dev").data
