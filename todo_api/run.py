"""`make run`: a database if none is given, migrations, gunicorn, and how to try it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from alembic import command
from alembic.config import Config

from todo_api.embedded import Cluster, EmbeddedError
from todo_api.settings import Settings, SettingsError, environment, load_settings

FOLDER = Path(".postgres")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

INVITATION = """
  The API is at   {url}
  Its page is at  {url}/docs

  Try it:
    TASKS={url}/api/5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10/tasks
    curl -s $TASKS -H 'Content-Type: application/json' -d '{{"title": "Buy oat milk"}}'
    curl -s $TASKS

  Ctrl-C stops it{data}.
"""


def main() -> None:
    """Serve until a signal; exits with the fault if there is one."""
    try:
        with ExitStack() as stack:
            serve(stack)
    except (SettingsError, EmbeddedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def serve(stack: ExitStack) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environ = environment()
    if environ.get("HOST", LOOPBACK[0]) in LOOPBACK:
        os.environ["AUTH_MODE"] = environ.setdefault("AUTH_MODE", "none")
    # Faults first: nothing is started for settings that will not do.
    settings = load_settings({"DATABASE_URL": "postgresql://"} | environ)
    embedded = not environ.get("DATABASE_URL")
    lock = None
    if embedded:
        lock = only_one(stack)
        cluster = Cluster(FOLDER)
        stack.callback(cluster.stop)
        cluster.start()
        os.environ["DATABASE_URL"] = cluster.create_database("todo")
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    # gunicorn holds the lock too: whoever finds it free finds no server of ours.
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"], pass_fds=[lock.fileno()] if lock else []
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    # Ctrl-C reaches gunicorn by itself; this process waits for it and then stops the database.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if answers(settings, server):
        data = f"; your tasks stay in {cluster.data}" if embedded else ""
        print(INVITATION.format(url=base_url(settings), data=data), flush=True)  # noqa: T201
    code = server.wait()
    if code:
        sys.exit(code)


def only_one(stack: ExitStack) -> IO[str]:
    """A lock on the folder for as long as this server runs, or EmbeddedError."""
    FOLDER.mkdir(exist_ok=True)
    lock = stack.enter_context((FOLDER / "lock").open("a+"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise EmbeddedError(
            f"It runs already (process {lock.read().strip()}): stop that one first, or give this "
            "one a database of its own with DATABASE_URL."
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def answers(settings: Settings, server: subprocess.Popen[bytes]) -> bool:
    """Whether the server comes to answer; False if it ends before."""
    while server.poll() is None:
        try:
            with urlopen(f"{base_url(settings)}/livez", timeout=1):  # noqa: S310  our own http URL
                return True
        except (URLError, TimeoutError):
            time.sleep(0.05)
    return False


def base_url(settings: Settings) -> str:
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  to be asked, not bound
    host = anywhere.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


if __name__ == "__main__":
    main()
