"""A PgBouncer in transaction mode, as on Neon's `-pooler` hosts.

The program is in Debian's package pgbouncer. It refuses to run as root, like PostgreSQL: if root
starts it, it runs as the account of the embedded PostgreSQL.
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

# Debian installs it in /usr/sbin, which is not in the PATH of an ordinary user.
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")

PORT = 6432  # a part of the socket's name; nothing listens on TCP
START_TIMEOUT = STOP_TIMEOUT = 30  # seconds

# With a password, PgBouncer authenticates clients by SCRAM, and logs in to the server with their
# SCRAM keys. Without one, both PgBouncer and the server trust every known user name.
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
    """A PgBouncer in front of a server, for all databases and logins of the server.

    It opens at most `pool_size` server connections for each login in each database.
    """

    def __init__(self, folder: Path, database_url: str, *, pool_size: int) -> None:
        self._account = find_account()
        self._folder = folder
        self._configuration = folder / "pgbouncer.ini"
        self._process: subprocess.Popen[bytes] | None = None
        self._configure(database_url, pool_size)
        self.url = self.pooled_url(database_url)

    def pooled_url(self, database_url: str) -> str:
        """Return the URL for the same database and login through the pooler.

        The URL of another server is returned unchanged.
        """
        parts = {name: str(value) for name, value in conninfo_to_dict(database_url).items()}
        if (parts.get("host"), parts.get("port")) != self._server:
            return database_url
        user = parts.get("user", self._user)
        password = f":{quote(parts['password'], '')}" if "password" in parts else ""
        database = quote(parts.get("dbname", user), "")
        query = urlencode({"host": str(self._folder), "port": PORT})
        return f"postgresql://{quote(user, '')}{password}@/{database}?{query}"

    def start(self) -> None:
        """Start PgBouncer, also again after `kill`, and wait until it accepts connections."""
        if PGBOUNCER is None:
            raise MissingProgramError("PgBouncer is not installed (Debian's package pgbouncer).")
        account_arguments: dict[str, Any] = (
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
                **account_arguments,
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
        """Send SIGKILL: all connections through PgBouncer are lost."""
        if self._process:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)

    def _configure(self, database_url: str, pool_size: int) -> None:
        parts = conninfo_to_dict(database_url)
        self._server = (parts.get("host"), parts.get("port"))
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
                sslmode=parts.get("sslmode", "prefer"),
            )
        )
        escaped = [value.replace('"', '""') for value in (self._user, password or "")]
        (self._folder / "users").write_text('"{}" "{}"\n'.format(*escaped))
        if self._account:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, self._account.uid, self._account.gid)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"{self._folder}/.s.PGSQL.{PORT}") == 0


@contextmanager
def pgbouncer(database_url: str, *, pool_size: int = 3) -> Iterator[Pooler]:
    """Run a pooler in front of the server of the URL, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="todo-api-", dir="/tmp") as folder:
        pooler = Pooler(Path(folder), database_url, pool_size=pool_size)
        try:
            pooler.start()
            yield pooler
        finally:
            pooler.kill()
