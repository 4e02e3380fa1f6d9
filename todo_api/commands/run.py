"""`make run`: migrate and run gunicorn; start a database and make a secret if they are not set."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Ctrl-C ends the process without a traceback while the imports below run, for nearly a second.
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

START_MESSAGE = """
  The API is at   {url}
  Its docs are at {url}/docs

  Try it:
    TASKS={url}/api/{user}/tasks{token}
    curl -s $TASKS{header} -H 'Content-Type: application/json' -d '{{"title": "Buy oat milk"}}'
    curl -s $TASKS{header}

  Ctrl-C stops it{data}.
"""
TOKEN_HEADER = ' -H "Authorization: Bearer $TOKEN"'  # noqa: S105  a shell's variable

# Addresses that mean "all addresses" to a server, and the addresses that a client uses instead.
LOCAL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens here


class PortError(Exception):
    """The server cannot listen on HOST and PORT. The message says why, and what to do."""


class Stopped(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM.

    A KeyboardInterrupt, because psycopg then cancels its statement.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> None:
    """Serve until a signal, or exit with a message if the server cannot start."""
    if arguments:
        sys.exit("usage: python -m todo_api.commands.run")
    handle_signals(stop)
    try:
        with ExitStack() as stack:
            try:
                serve(stack)
            finally:
                # A signal must not interrupt the stack while it stops the database.
                handle_signals(signal.SIG_IGN)
    except (SettingsError, EmbeddedError, PortError) as error:
        sys.exit(str(error))
    except Stopped as stopped:
        sys.exit(128 + stopped.number)


def serve(stack: ExitStack) -> None:
    """Run migrations, then gunicorn until it ends. `stack` stops the database afterwards.

    Raises SettingsError, PortError, EmbeddedError or Stopped. After a SettingsError or PortError,
    nothing was started.
    """
    environ = read_environment()
    settings = load_development_settings(environ)
    defaults = default_secret(environ)
    lock, data_note = None, ""
    if not environ.get("DATABASE_URL"):
        lock = lock_folder(stack)
    check_port(settings)
    if lock:
        cluster = Cluster(FOLDER)
        stack.callback(cluster.stop)
        # An interrupted start would leave processes that `Cluster.stop` does not know.
        with deferred_signals(then=stop):
            cluster.start()
        defaults["DATABASE_URL"] = cluster.create_database("todo")
        data_note = f"; your tasks stay in {cluster.data}"
    # Migrations and gunicorn read the environment.
    os.environ.update(defaults)
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    # gunicorn ends first, then the database.
    with deferred_signals(then=lambda *_: server.terminate()):
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn"],
            # gunicorn inherits the lock, so the lock is held as long as gunicorn runs.
            pass_fds=[lock.fileno()] if lock else [],
            # Ctrl-C must not reach gunicorn: a SIGINT while a worker of gunicorn 27 accepts a
            # connection leads to a deadlock in this worker. SIGTERM does not.
            start_new_session=True,
        )
    if await_server(settings, server):
        print(format_start_message(settings, data_note), flush=True)  # noqa: T201
    code = server.wait()
    if code:
        # The code is negative if a signal killed gunicorn, for example during its start.
        sys.exit(code if code > 0 else 128 - code)


def handle_signals(handler: Handler) -> None:
    """Handle the signals that end the server."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def stop(number: int, _: Any) -> None:
    """Raise Stopped, and ignore further signals, which would interrupt the cleanup."""
    handle_signals(signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def deferred_signals(*, then: Handler) -> Iterator[None]:
    """Delay signals until the end of the block; from its end on, `then` handles them."""
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
                " process, or choose another port with PORT."
            ) from None
        reason = (error.strerror or "").partition(" (")[0]
        raise PortError(
            f"The server cannot listen on {settings.host}, port {settings.port}: {reason}."
            " Correct HOST or PORT."
        ) from None


def lock_folder(stack: ExitStack) -> IO[str]:
    """Lock the folder until this server ends; return the lock.

    Raises EmbeddedError if another server holds the lock.
    """
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
    """Wait until the server responds; return False if it ends first."""
    while server.poll() is None:
        try:
            with urlopen(f"{base_url(settings)}/livez", timeout=1):  # noqa: S310  our own http URL
                return True
        except (URLError, TimeoutError):
            time.sleep(0.05)
    return False


def format_start_message(settings: Settings, data_note: str) -> str:
    """Return the text that `make run` prints: addresses, and commands to paste into a shell.

    The commands have a token if the settings have the secret to sign one.
    """
    needs_token = settings.auth_mode == "jwt"
    token = "a-token-of-your-issuer"  # noqa: S105  a placeholder
    if needs_token and settings.jwt_secret is not None:
        token = make_token(settings, EXAMPLE_USER)
    return START_MESSAGE.format(
        url=base_url(settings),
        user=make_user_id(settings, EXAMPLE_USER) if needs_token else EXAMPLE_USER,
        token=f"\n    TOKEN={token}" if needs_token else "",
        header=TOKEN_HEADER if needs_token else "",
        data=data_note,
    )


def base_url(settings: Settings) -> str:
    """Return the URL of the server for clients on this machine."""
    host = LOCAL_ADDRESSES.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


if __name__ == "__main__":
    main(sys.argv[1:])
