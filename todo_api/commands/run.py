"""`make run`: start a database and make a secret if none are set, migrate, and run gunicorn."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Nothing is started yet: while the modules below are imported, which takes most of a second,
    # Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from alembic import command
from alembic.config import Config

from todo_api.auth.tokens import make_user_id
from todo_api.commands.development import (
    EXAMPLE_USER,
    FOLDER,
    default_secret,
    load_development_settings,
)
from todo_api.commands.embedded import Cluster, EmbeddedError
from todo_api.commands.token import make_token
from todo_api.settings import Settings, SettingsError, read_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Handler = Callable[[int, Any], Any] | signal.Handlers

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


class PortError(Exception):
    """The server cannot listen where the settings say; the message says why, and what to do."""


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM has come. psycopg cancels its statement on a KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> None:
    """Serve until a signal; exit with a message if the server cannot start."""
    if arguments:
        sys.exit("usage: python -m todo_api.commands.run")
    handle_signals(stop)
    try:
        with ExitStack() as stack:
            try:
                serve(stack)
            finally:
                # No signal interrupts the stack while it stops what was started.
                handle_signals(signal.SIG_IGN)
    except (SettingsError, EmbeddedError, PortError) as error:
        sys.exit(str(error))
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def serve(stack: ExitStack) -> None:
    """Run migrations and gunicorn until it ends. `stack` stops what this function starts.

    Raises SettingsError or PortError before anything is started; EmbeddedError; or Stopped.
    """
    environ = read_environment()
    settings = load_development_settings(environ)
    missing = default_secret(environ)
    lock, data_note = None, ""
    if not environ.get("DATABASE_URL"):
        lock = lock_folder(stack)
    check_port(settings)
    if lock:
        cluster = Cluster(FOLDER)
        stack.callback(cluster.stop)
        # A start that is interrupted would leave processes behind that `stop` does not know.
        with deferred_signals(then=stop):
            cluster.start()
        missing["DATABASE_URL"] = cluster.create_database("todo")
        data_note = f"; your tasks stay in {cluster.data}"
    # Migrations and gunicorn read the environment.
    os.environ.update(missing)
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    # gunicorn ends first, then the database.
    with deferred_signals(then=lambda *_: server.terminate()):
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn"],
            # gunicorn inherits the lock, which is therefore free only when no gunicorn runs.
            pass_fds=[lock.fileno()] if lock else [],
            # Ctrl-C must not reach it: a worker of gunicorn 27 that is just accepting a connection
            # would then wait for itself until it is killed. At SIGTERM it does not.
            start_new_session=True,
        )
    if await_server(settings, server):
        print(format_invitation(settings, data_note), flush=True)  # noqa: T201
    code = server.wait()
    if code:
        # Negative if a signal killed gunicorn, as before it has set its own handlers.
        sys.exit(code if code > 0 else 128 - code)


def handle_signals(handler: Handler) -> None:
    """Handle the signals that end the server."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def stop(number: int, _: Any) -> None:
    """Raise Stopped, once: no further signal interrupts what it leads to."""
    handle_signals(signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def deferred_signals(*, then: Handler) -> Iterator[None]:
    """Handle signals at the end of the block, and from then on, by `then`."""
    received: list[int] = []
    handle_signals(lambda number, _: received.append(number))
    try:
        yield
    finally:
        handle_signals(then)
    if received:
        signal.raise_signal(received[0])


def check_port(settings: Settings) -> None:
    """Raise PortError unless gunicorn can listen where the settings say."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortError(
                f"Port {settings.port} of {settings.host} is in use by another process: stop that"
                " one, or choose another port with PORT."
            ) from None
        reason = (error.strerror or "").partition(" (")[0]
        raise PortError(
            f"The server cannot listen on {settings.host}, port {settings.port}: {reason}."
            " Correct HOST or PORT."
        ) from None


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
        user=make_user_id(settings, EXAMPLE_USER) if needs_token else EXAMPLE_USER,
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
