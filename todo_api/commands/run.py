"""`make run`: start a database and make a secret if none are set, migrate, and run gunicorn."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from alembic import command
from alembic.config import Config

from todo_api.commands.development import (
    EXAMPLE_USER,
    FOLDER,
    default_secret,
    load_development_settings,
)
from todo_api.commands.embedded import Cluster, EmbeddedError
from todo_api.commands.token import make_token
from todo_api.settings import Settings, SettingsError, read_environment

INVITATION = """
  The API is at   {url}
  Its docs are at {url}/docs

  Try it:
    TASKS={url}/api/{user}/tasks{token}
    curl -s $TASKS{header} -H 'Content-Type: application/json' -d '{{"title": "Buy oat milk"}}'
    curl -s $TASKS{header}

  Ctrl-C stops it{data}.
"""
TOKEN_HEADER = ' -H "Authorization: Bearer $TOKEN"'  # noqa: S105  a shell's variable

# Addresses that a server listens on, and those at which this machine then reaches it.
LOCAL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens here


def main(arguments: list[str]) -> None:
    """Serve until a signal; exit with a message if the server cannot start."""
    if arguments:
        sys.exit("usage: python -m todo_api.commands.run")
    try:
        with ExitStack() as stack:
            serve(stack)
    except (SettingsError, EmbeddedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def serve(stack: ExitStack) -> None:
    """Run migrations and gunicorn until it ends. `stack` stops what this function starts.

    Raises SettingsError before anything is started, or EmbeddedError.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environ = read_environment()
    settings = load_development_settings(environ)
    missing = default_secret(environ)
    lock, data_note = None, ""
    if not environ.get("DATABASE_URL"):
        lock = lock_folder(stack)
        cluster = Cluster(FOLDER)
        stack.callback(cluster.stop)
        cluster.start()
        missing["DATABASE_URL"] = cluster.create_database("todo")
        data_note = f"; your tasks stay in {cluster.data}"
    # Migrations and gunicorn read the environment.
    os.environ.update(missing)
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        # gunicorn inherits the lock, which is therefore free only when no gunicorn runs.
        pass_fds=[lock.fileno()] if lock else [],
        # Ctrl-C (SIGINT) must not reach gunicorn: a worker of gunicorn 27 that is just accepting a
        # connection would hang until it is killed. SIGTERM does not cause this.
        start_new_session=True,
    )
    # gunicorn ends first, then the database.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: server.terminate())
    if await_server(settings, server):
        print(format_invitation(settings, data_note), flush=True)  # noqa: T201
    code = server.wait()
    if code:
        sys.exit(code)


def lock_folder(stack: ExitStack) -> IO[str]:
    """Return a lock on the folder, held until this server ends. Raises EmbeddedError if taken."""
    FOLDER.mkdir(exist_ok=True)
    lock = stack.enter_context((FOLDER / "lock").open("a+"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise EmbeddedError(
            f"`make run` runs already (process {lock.read().strip()}): stop it first, or set "
            "DATABASE_URL to use another database."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def await_server(settings: Settings, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; return False if it ends before."""
    while server.poll() is None:
        try:
            with urlopen(f"{base_url(settings)}/livez", timeout=1):  # noqa: S310  our own http URL
                return True
        except (URLError, TimeoutError):
            time.sleep(0.05)
    return False


def format_invitation(settings: Settings, data_note: str) -> str:
    """Return the addresses, and lines to paste into a shell, with a token if one can be made."""
    needs_token = settings.auth_mode == "jwt"
    token = "a-token-of-your-issuer"  # noqa: S105  a placeholder
    if needs_token and settings.jwt_secret is not None:
        token = make_token(settings, EXAMPLE_USER)
    return INVITATION.format(
        url=base_url(settings),
        user=EXAMPLE_USER,
        token=f"\n    TOKEN={token}" if needs_token else "",
        header=TOKEN_HEADER if needs_token else "",
        data=data_note,
    )


def base_url(settings: Settings) -> str:
    """Return the URL at which this machine reaches the server."""
    host = LOCAL_ADDRESSES.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


if __name__ == "__main__":
    main(sys.argv[1:])
