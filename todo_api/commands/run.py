"""`make run`: a database and a secret if none are given, migrations, gunicorn, how to try it."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import UUID

from alembic import command
from alembic.config import Config
from joserfc import jwt
from joserfc.jwk import OctKey

from todo_api.commands.embedded import Cluster, EmbeddedError
from todo_api.settings import KEY_SOURCES, Settings, SettingsError, environment, load_settings

# Data, log, lock and secret of the server that is run here, kept out of git.
FOLDER = Path(".dev")


SOMEBODY = UUID("5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10")


TOKEN_LIFETIME = timedelta(hours=12)


INVITATION = """
  The API is at   {url}
  Its page is at  {url}/docs

  Try it:
    TASKS={url}/api/{user}/tasks{token}
    curl -s $TASKS{header} -H 'Content-Type: application/json' -d '{{"title": "Buy oat milk"}}'
    curl -s $TASKS{header}

  Ctrl-C stops it{data}.
"""


WITH_TOKEN = ' -H "Authorization: Bearer $TOKEN"'  # noqa: S105  a shell's variable


def main(arguments: list[str]) -> None:
    """Serve until a signal, or print a token for a user; exits with the fault if there is one."""
    try:
        match arguments:
            case []:
                with ExitStack() as stack:
                    serve(stack)
            case ["token", user]:
                print(token(development_settings(environment()), user))  # noqa: T201
            case _:
                sys.exit("usage: python -m todo_api.run [token USER_ID]")
    except (SettingsError, EmbeddedError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def development_settings(environ: dict[str, str]) -> Settings:
    """The settings, with a secret of this checkout's own where no key is named.

    It is made once. Its tokens mean nothing to a server with other keys.
    """
    if environ.get("AUTH_MODE") in (None, "", "jwt") and not environ.keys() & {*KEY_SOURCES}:
        FOLDER.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(FOLDER / "secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123  with its mode from the start
                file.write(secrets.token_hex(32))
        os.environ["JWT_SECRET"] = environ["JWT_SECRET"] = (FOLDER / "secret").read_text()
    return load_settings({"DATABASE_URL": "postgresql://"} | environ)


def token(settings: Settings, user: str) -> str:
    """A token for the user, signed with the secret of the settings. Raises SettingsError."""
    if settings.jwt_secret is None or settings.auth_mode != "jwt":
        raise SettingsError("Tokens can be made here only where JWT_SECRET is what verifies them.")
    if not user:
        raise SettingsError("Name a user: make token USER_ID=" + str(SOMEBODY))
    now = int(time.time())
    claims: dict[str, Any] = {
        settings.jwt_user_claim: user,
        "iat": now,
        "exp": now + int(TOKEN_LIFETIME.total_seconds()),
    }
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(settings.jwt_secret))


def serve(stack: ExitStack) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environ = environment()
    # Faults first: nothing is started for settings that will not do.
    settings = development_settings(environ)
    embedded = not environ.get("DATABASE_URL")
    lock = None
    if embedded:
        lock = only_one(stack)
        cluster = Cluster(FOLDER)
        stack.callback(cluster.stop)
        cluster.start()
        os.environ["DATABASE_URL"] = cluster.create_database("todo")
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn"],
        # gunicorn holds the lock too: whoever finds it free finds no server of ours.
        pass_fds=[lock.fileno()] if lock else [],
        # Out of reach of Ctrl-C, at which a worker of gunicorn 27 that is just accepting a
        # connection waits for itself until it is killed. At SIGTERM it does not.
        start_new_session=True,
    )
    # First gunicorn ends, then the database.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda *_: server.terminate())
    if answers(settings, server):
        kept = f"; your tasks stay in {cluster.data}" if embedded else ""
        print(invitation(settings, kept), flush=True)  # noqa: T201
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


def invitation(settings: Settings, kept: str) -> str:
    """Where everything is, and lines to paste that work: with a token where one can be made."""
    ours = settings.jwt_secret is not None and settings.auth_mode == "jwt"
    asked = settings.auth_mode == "jwt"
    made = token(settings, str(SOMEBODY)) if ours else "a-token-of-your-issuer"
    return INVITATION.format(
        url=base_url(settings),
        user=SOMEBODY,
        token=f"\n    TOKEN={made}" if asked else "",
        header=WITH_TOKEN if asked else "",
        data=kept,
    )


def base_url(settings: Settings) -> str:
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  to be asked, not bound
    host = anywhere.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


if __name__ == "__main__":
    main(sys.argv[1:])
