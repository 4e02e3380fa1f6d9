"""The servers that faults happen to: a PostgreSQL that can be killed, and gunicorn."""

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

# Stop a process, which then forks no more, and its children; continue all of them after $2 seconds.
STALL = """
    kill -STOP "$1"
    children=$(cat "/proc/$1/task/$1/children")
    kill -STOP $children
    echo stopped
    sleep "$2"
    kill -CONT $children "$1"
"""


# Below those that systems give to outgoing connections: a server that is killed gets its own back.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 30) -> float:
    """Seconds until it holds; AssertionError, which says what was awaited, if it never does."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + seconds, f"After {seconds} s still not: {what}."
        time.sleep(0.01)
    return time.monotonic() - begun


def children(process: int) -> list[int]:
    try:
        return [int(each) for each in children_file(process).read_text().split()]
    except FileNotFoundError:
        return []


def children_file(process: int) -> Path:
    return Path(f"/proc/{process}/task/{process}/children")


def ended(process: int) -> bool:
    """Whether the process is gone; as a zombie, which someone else has to reap, it is."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Postgres(Cluster):
    """A PostgreSQL that keeps its port and its data, on disk and synced, when it is killed."""

    def __init__(self, folder: Path, options: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        own = {"listen_addresses": HOST, "port": str(self.port)}
        super().__init__(folder, options={**own, **(options or {})})

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    def url(self, database: str = DATABASE) -> str:
        """Where the database is, for a superuser, whether or not the server runs."""
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def connect(self) -> psycopg.Connection[tuple]:
        """A superuser's own connection to the database that is served."""
        return psycopg.connect(self.url(), autocommit=True)

    def stop(self) -> None:
        # Of one that was killed and not started again, the process id may be somebody else's.
        if self._process and self._process.poll() is None:
            super().stop()

    def processes(self) -> list[int]:
        """The postmaster and all that it has forked."""
        assert self._process
        return [self._process.pid, *children(self._process.pid)]

    @contextmanager
    def stalled(self, seconds: float) -> Iterator[None]:
        """Stop every process of the server for this time; the exit waits until they continue.

        A shell in a session of its own stops and continues them: nothing stays stopped, even if
        this process is killed.
        """
        assert self._process
        shell = subprocess.Popen(
            ["/bin/sh", "-c", STALL, "sh", str(self._process.pid), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a child may have ended in the meantime
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
        # PostgreSQL does not start on memory that one of them still holds.
        wait_until(lambda: all(map(ended, processes)), "the killed server has ended")


@contextmanager
def postgresql(**options: str) -> Iterator[Postgres]:
    """A running PostgreSQL with a migrated database; both are gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server's account has to get at its data, below
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
    ended = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=environment(DATABASE_URL=database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]


def url_through_proxy(database_url: str, proxy: Proxy) -> str:
    """The URL of a Postgres, by way of the proxy in front of it."""
    scheme, _, rest = database_url.partition("@")
    host, port = proxy.address
    return f"{scheme}@{host}:{port}/{rest.partition('/')[2]}"


def environment(**settings: str) -> dict[str, str]:
    """The settings over an environment that holds none of the project's own."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | settings


class Api:
    """gunicorn as in production, on a port of its own; its log is in a file."""

    def command(self) -> list[str]:
        """What Python runs."""
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
            limited = 'ulimit -n "$0" && exec "$@"'
            command = ["sh", "-c", limited, str(self.descriptors), *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches a whole process group; this server stops when we say so.
                start_new_session=True,
            )

    def await_answer(self, path: str = "/health", seconds: float = 30) -> float:
        """Seconds until the path is answered with 200."""

        def answers() -> bool:
            assert self.process, "It was not started."
            assert self.process.poll() is None, f"gunicorn has ended:\n{self.end_of_log()}"
            with Client(self.address, timeout=5) as client, suppress(OSError, HTTPException):
                return client.request("GET", path).status == 200
            return False

        return wait_until(answers, f"{path} is 200", seconds)

    def workers(self) -> list[int]:
        assert self.process
        return children(self.process.pid)

    def metrics(self) -> dict[str, float]:
        """Each of the metrics that /metrics tells, over all of its labels."""
        with Client(self.address) as client:
            answer = client.request("GET", "/metrics")
        assert answer.status == 200, answer
        sums: dict[str, float] = defaultdict(float)
        for line in answer.body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                sums[name.partition("{")[0]] += float(value)
        return sums

    def stop(self) -> None:
        # Not SIGINT, at which a worker of gunicorn 27 that is just accepting waits for ever.
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
    """A server with these settings that answers; the end of its log is told if a part fails.

    Each of its processes has so many descriptors at most, if that is given.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        api = kind(database_url, Path(folder) / "log", descriptors, **settings)
        try:
            api.start()
            api.await_answer()
            yield api
        except Exception as error:
            error.add_note(f"The end of the server's log:\n{api.end_of_log()}")
            raise
        finally:
            api.stop()
