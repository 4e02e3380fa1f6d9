"""A PgBouncer of our own in transaction mode, as Neon's `-pooler` hosts are, for tests and faults.

The program is Debian's package pgbouncer. Like PostgreSQL it refuses to run as root: started by
root, it runs as the account that the embedded PostgreSQL runs as.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from fault_injection import MissingProgramError
from todo_api.commands.embedded import find_account

if TYPE_CHECKING:
    from collections.abc import Iterator

# An ordinary user's PATH is without the folder into which Debian installs it.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

PORT = 6432  # the name of a socket in a folder of its own; nothing listens on TCP
START_TIMEOUT = STOP_TIMEOUT = 30  # seconds

# With a password, clients log in to the pooler by SCRAM, and it to the server by what they proved;
# without one, the server trusts whom it knows, and so does the pooler.
CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 1000
unix_socket_dir = {folder}
unix_socket_mode = 0777
listen_addr =
listen_port = {listen_port}
auth_type = {auth_type}
auth_file = {folder}/users
auth_user = {user}
server_tls_sslmode = {sslmode}
"""


class Pooler:
    """A PgBouncer in front of the server of a URL: any database, any login that the server knows.

    At most `pool_size` server connections for each login in each database.
    """

    def __init__(self, folder: Path, database_url: str, *, pool_size: int) -> None:
        self._account = find_account()
        self._folder = folder
        self._configuration = folder / "pgbouncer.ini"
        self._process: subprocess.Popen[bytes] | None = None
        self._configure(database_url, pool_size)
        self.url = self.pooled_url(database_url)

    def pooled_url(self, database_url: str) -> str:
        """The database and the login of the URL, by way of the pooler.

        A URL of any other server stays as it is.
        """
        given = {name: str(value) for name, value in conninfo_to_dict(database_url).items()}
        if (given.get("host"), given.get("port")) != self._server:
            return database_url
        user = given.get("user", self._user)
        password = f":{quote(given['password'], '')}" if "password" in given else ""
        database = quote(given.get("dbname", user), "")
        query = urlencode({"host": str(self._folder), "port": PORT})
        return f"postgresql://{quote(user, '')}{password}@/{database}?{query}"

    def start(self) -> None:
        """Start it, or start it again on the same URL; it accepts connections on return."""
        if PGBOUNCER is None:
            raise MissingProgramError("PgBouncer is not installed (Debian's package pgbouncer).")
        as_whom: dict[str, Any] = (
            {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
            if self._account
            else {}
        )
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PGBOUNCER, self._configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **as_whom,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._accepts():
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(
            f"PgBouncer did not start:\n{(self._folder / 'log').read_text()[-2000:]}"
        )

    def kill(self) -> None:
        """End it without a word to anybody: every connection through it breaks."""
        if self._process:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)

    def _configure(self, database_url: str, pool_size: int) -> None:
        given = conninfo_to_dict(database_url)
        self._server = (given.get("host"), given.get("port"))
        with psycopg.connect(database_url) as connection:
            server = connection.info
            host, port, self._user, password = (
                server.host,
                server.port,
                server.user,
                server.password,
            )
        self._configuration.write_text(
            CONFIGURATION.format(
                host=host,
                port=port,
                pool_size=pool_size,
                folder=self._folder,
                listen_port=PORT,
                auth_type="scram-sha-256" if password else "trust",
                user=self._user,
                sslmode=given.get("sslmode", "prefer"),
            )
        )
        doubled = [part.replace('"', '""') for part in (self._user, password or "")]
        (self._folder / "users").write_text('"{}" "{}"\n'.format(*doubled))
        if self._account:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, self._account.uid, self._account.gid)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"{self._folder}/.s.PGSQL.{PORT}") == 0


@contextmanager
def pgbouncer(database_url: str, *, pool_size: int = 3) -> Iterator[Pooler]:
    """A running pooler in front of the server of the URL; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="todo-api-", dir="/tmp") as folder:
        pooler = Pooler(Path(folder), database_url, pool_size=pool_size)
        try:
            pooler.start()
            yield pooler
        finally:
            pooler.kill()
