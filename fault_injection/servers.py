"""The servers of a scenario: a PostgreSQL that can be killed and stopped, and gunicorn."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from fault_injection.clients import Client
from todo_api.commands.embedded import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fault_injection.proxy import Proxy

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
DATABASE = "todo"

# Stop the process $1, so that it cannot fork, then its children. Continue all after $2 seconds.
STALL = """
    kill -STOP "$1"
    children=$(cat "/proc/$1/task/$1/children")
    kill -STOP $children
    echo stopped
    sleep "$2"
    kill -CONT $children "$1"
"""


# No outgoing connection gets one of these ports, so a killed server can use its port again.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_until(is_true: Callable[[], bool], condition: str, seconds: float = 30) -> float:
    """Wait until `is_true()`; return the seconds. Raises AssertionError at the timeout."""
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() < started + seconds, f"Not true after {seconds} s: {condition}."
        time.sleep(0.01)
    return time.monotonic() - started


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in children_file(process).read_text().split()]
    except FileNotFoundError:
        return []


def children_file(process: int) -> Path:
    return Path(f"/proc/{process}/task/{process}/children")


def has_ended(process: int) -> bool:
    """Return True if the process has ended, also if it is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Postgres(Cluster):
    """A PostgreSQL that syncs its data to disk, and keeps its port and data after a kill."""

    def __init__(self, folder: Path, options: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        address = {"listen_addresses": HOST, "port": str(self.port)}
        super().__init__(folder, options={**address, **(options or {})})

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    def url(self, database: str = DATABASE) -> str:
        """Return the URL of the database for a superuser, also while the server is stopped."""
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def connect(self) -> psycopg.Connection[tuple]:
        """Open a superuser's connection to the database of the API."""
        return psycopg.connect(self.url(), autocommit=True)

    def stop(self) -> None:
        # After a kill without a new start, another process may have the same process id.
        if self._process and self._process.poll() is None:
            super().stop()

    def processes(self) -> list[int]:
        """Return the process ids of the postmaster and its children."""
        assert self._process
        return [self._process.pid, *children(self._process.pid)]

    @contextmanager
    def stalled(self, seconds: float) -> Iterator[None]:
        """Stop all processes of the server for `seconds`; the exit waits until they continue.

        A shell in its own session stops and continues them. So no process stays stopped, even if
        this process is killed.
        """
        assert self._process
        shell = subprocess.Popen(
            ["/bin/sh", "-c", STALL, "sh", str(self._process.pid), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a child may have ended
            start_new_session=True,
        )
        try:
            assert shell.stdout
            assert shell.stdout.readline() == b"stopped\n", "The server was not stopped."
            yield
        finally:
            shell.communicate(timeout=seconds + 30)

    def kill(self) -> None:
        """End every process of the server at once, as the end of its machine would."""
        assert self._process
        # Stopped first: it forks no more while its children are counted.
        self._process.send_signal(signal.SIGSTOP)
        processes = self.processes()
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        # PostgreSQL does not start while one of the old processes uses the shared memory.
        wait_until(lambda: all(map(has_ended, processes)), "the killed server has ended")


@contextmanager
def postgresql(**options: str) -> Iterator[Postgres]:
    """Run a PostgreSQL with a migrated database, and remove both at the end."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server's account needs access to its data in this folder
        server = Postgres(Path(folder), options)
        try:
            server.start()
            with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            migrate(server.url())
            yield server
        finally:
            server.stop()


def migrate(database_url: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=environment(DATABASE_URL=database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 0, process.stdout[-2000:]


def url_through_proxy(database_url: str, proxy: Proxy) -> str:
    """Return the URL of a Postgres with the address of the proxy in front of it."""
    login, _, location = database_url.partition("@")
    host, port = proxy.address
    return f"{login}@{host}:{port}/{location.partition('/')[2]}"


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with these settings and no other setting of this project."""
    inherited = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in inherited if name in os.environ} | settings


class Api:
    """gunicorn as in production, on a free port, with its log in a file."""

    def command(self) -> list[str]:
        """Return the arguments of Python that start the server."""
        return ["-m", "gunicorn"]

    def __init__(
        self, database_url: str, log: Path, descriptors: int | None = None, **settings: str
    ) -> None:
        self.port = free_port()
        self.log = log
        self.descriptors = descriptors
        self.environment = environment(
            **{"DATABASE_URL": database_url, "PORT": str(self.port), "AUTH_MODE": "none"}
            | {"WEB_CONCURRENCY": "2", "LOG_LEVEL": "warning", "METRICS": "true"}
            | settings
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    def start(self) -> None:
        command = [sys.executable, *self.command()]
        if self.descriptors is not None:
            script = 'ulimit -n "$0" && exec "$@"'
            command = ["sh", "-c", script, str(self.descriptors), *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C does not reach another process group: only `stop` stops this server.
                start_new_session=True,
            )

    def wait_for_success(self, path: str = "/health", seconds: float = 30) -> float:
        """Return the seconds until a GET of the path gets 200."""

        def succeeds() -> bool:
            assert self.process, "The server was not started."
            assert self.process.poll() is None, f"gunicorn has ended:\n{self.end_of_log()}"
            with Client(self.address, timeout=5) as client, suppress(OSError, HTTPException):
                return client.request("GET", path).status == 200
            return False

        return wait_until(succeeds, f"{path} is 200", seconds)

    def workers(self) -> list[int]:
        assert self.process
        return children(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of /metrics, each as the sum over its labels."""
        with Client(self.address) as client:
            response = client.request("GET", "/metrics")
        assert response.status == 200, response
        sums: dict[str, float] = defaultdict(float)
        for line in response.body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                sums[name.partition("{")[0]] += float(value)
        return sums

    def stop(self) -> None:
        # Not SIGINT: a worker of gunicorn 27 that is in accept() at that moment never ends.
        if self.process and self.process.poll() is None:
            workers = self.workers()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for process in (self.process.pid, *workers):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                self.process.wait()
                raise

    def end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def serving(
    database_url: str, kind: type[Api] = Api, descriptors: int | None = None, **settings: str
) -> Iterator[Api]:
    """Run a server with these settings. An exception gets the end of its log as a note.

    `descriptors` limits the open files of each of its processes.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        api = kind(database_url, Path(folder) / "log", descriptors, **settings)
        try:
            api.start()
            api.wait_for_success()
            yield api
        except Exception as error:
            error.add_note(f"The end of the server's log:\n{api.end_of_log()}")
            raise
        finally:
            api.stop()
