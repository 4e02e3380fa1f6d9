"""Who is compared: this API, its peers and the limits; how each is served, and what it must do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import ROOT, SECRET, WRITES, task_id, token, user_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from data import Data

PEERS = Path(__file__).parent / "peers"
VENV = ROOT / ".venv-bench"
WORKERS, THREADS = 2, 4

ALL = tuple(WRITES)
PLAIN = tuple(name for name in ALL if name != "not_modified")


@dataclass(frozen=True)
class Contender:
    """A server, and what it can be asked. `{port}` and `{workers}` stand in its command.

    A limit has no database, so that what it answers is always the same.
    """

    name: str
    command: tuple[str | Path, ...]
    operations: tuple[str, ...] = PLAIN
    folder: Path = PEERS
    environ: Mapping[str, str] = field(default_factory=dict)
    limit: bool = False


def gunicorn(python: str | Path, application: str, *options: str) -> tuple[str | Path, ...]:
    return python, "-m", "gunicorn", "--config", PEERS / "gunicorn.conf.py", *options, application


def uvicorn(application: str) -> tuple[str | Path, ...]:
    options = ("--loop", "uvloop", "--http", "httptools", "--no-access-log")
    listen = ("--workers", "{workers}", "--port", "{port}")
    return VENV / "bin/python", "-m", "uvicorn", *options, *listen, application


OURS = Contender(
    "this API",
    (sys.executable, "-m", "gunicorn"),
    ALL,
    ROOT,
    # What else .env may say of tokens is unset by nothing.
    {"JWT_JWKS_URL": "", "JWT_PUBLIC_KEY": "", "JWT_ISSUER": "", "JWT_AUDIENCE": ""}
    | {"LOG_LEVEL": "info", "METRICS": "true"},
)
# What pays where the database is next door: threads are for waiting, and wait for each other.
ONE_THREAD = replace(
    OURS, name="this API, one thread", environ={**OURS.environ, "WEB_THREADS": "1"}
)
SQLMODEL = Contender("FastAPI + SQLModel", uvicorn("fastapi_sqlmodel:app"))
ASYNCPG = Contender("FastAPI + asyncpg", uvicorn("fastapi_asyncpg:app"))
FLASK_ORM = Contender("Flask-SQLAlchemy", gunicorn(VENV / "bin/python", "flask_sqlalchemy_orm:app"))
FASTIFY = Contender("Fastify + pg", ("node", PEERS / "fastify/server.mjs"))
BARE_FLASK = Contender(
    "bare Flask", gunicorn(sys.executable, "bare:flask"), ("get", "list", "create"), limit=True
)
BARE_WSGI = Contender(
    "bare WSGI", gunicorn(sys.executable, "bare:wsgi"), ("get", "list", "create"), limit=True
)
# gunicorn's own worker has the two above, ours this one.
OUR_WORKER = Contender(
    "bare Flask, our worker",
    gunicorn(sys.executable, "bare:flask", "-k", "todo_api.server.worker.Worker"),
    ("get", "list", "create"),
    environ={"PYTHONPATH": str(ROOT)},
    limit=True,
)

CONTENDERS = (
    OURS,
    ONE_THREAD,
    SQLMODEL,
    ASYNCPG,
    FLASK_ORM,
    FASTIFY,
    BARE_FLASK,
    BARE_WSGI,
    OUR_WORKER,
)


def install_peers() -> None:
    """Install what the peers need, as their lock files have it, unless it is there."""
    lock = PEERS / "requirements.lock"
    installed = VENV / "installed"
    if not newer(installed, lock):
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        pip = [VENV / "bin/python", "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--require-hashes", "-r", lock]
        subprocess.run([*pip, *options], check=True)
        installed.touch()
    if shutil.which("npm") is None:
        sys.exit("Node with npm is needed for one of the peers: Node 20 or later")
    folder = PEERS / "fastify"
    if not newer(folder / "node_modules/.package-lock.json", folder / "package-lock.json"):
        subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True)


def newer(made: Path, source: Path) -> bool:
    return made.exists() and made.stat().st_mtime > source.stat().st_mtime


@dataclass(frozen=True)
class Server:
    """A contender that serves, and the id of the process group that it is."""

    contender: Contender
    url: str
    group: int

    def processes(self) -> list[int]:
        """The ids of its processes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(stat(folder)[2]) == self.group:
                    found.append(int(folder.name))
        return found

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used; 0 where there is no /proc."""
        ticks = 0
        for process in self.processes():
            with suppress(OSError):
                fields = stat(Path(f"/proc/{process}"))
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> list[float]:
        """MB that each of its workers has resident, the most first."""
        found = []
        for process in self.processes():
            if process != self.group:
                pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
                found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        return sorted(found, reverse=True)


def stat(folder: Path) -> list[str]:
    """What /proc tells of a process from its state on: proc(5)."""
    return (folder / "stat").read_text().rpartition(") ")[2].split()


@contextmanager
def serving(
    contender: Contender,
    database_url: str,
    log: Path,
    *,
    tokens: bool,
    workers: int = WORKERS,
    threads: int = THREADS,
) -> Iterator[Server]:
    """The contender on a port of its own until the end; what it says goes to `log`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    values = {"port": str(port), "workers": str(workers)}
    environ = {
        "DATABASE_URL": database_url,
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
        "WEB_THREADS": str(threads),
        "AUTH_MODE": "jwt" if tokens else "none",
        "JWT_SECRET": SECRET if tokens else "",
    }
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [str(part).format(**values) for part in contender.command],
            cwd=contender.folder,
            env=os.environ | environ | contender.environ,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        server = Server(contender, f"http://127.0.0.1:{port}", process.pid)
        await_answer(process, server.url, log)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for an answer of any kind: a server listens before its workers can serve."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{log.stem} does not answer:\n{log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


def ask(
    server: Server, method: str, path: str, body: object = None, *, bearer: str | None = None
) -> Answer:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
            return Answer(answer.status, json.loads(text) if text else None)
    except urllib.error.HTTPError as error:
        error.close()
        return Answer(error.code, None)


MEMBERS = {
    *("id", "user_id", "title", "description", "completed"),
    *("created_at", "updated_at", "revision"),
}


def check(server: Server, data: Data, *, tokens: bool) -> None:
    """Assert that a contender does the work that is to be measured, and refuses what is wrong."""
    tasks = f"/api/{user_id(1)}/tasks"
    bearer = token(1) if tokens else None

    def status(method: str, path: str, body: object = None, token: str | None = bearer) -> int:
        return ask(server, method, path, body, bearer=token).status

    if server.contender.limit:
        assert status("GET", f"{tasks}/{task_id(1)}") == 200  # noqa: PLR2004
        return
    before = data.changes()
    made = ask(server, "POST", tasks, {"title": "  Buy oat milk "}, bearer=bearer)
    assert made.status == 201, made  # noqa: PLR2004
    assert made.body.keys() == MEMBERS, made
    assert made.body["title"] == "Buy oat milk", made
    task = f"{tasks}/{made.body['id']}"
    assert ask(server, "GET", task, bearer=bearer) == Answer(200, made.body)
    listed = ask(server, "GET", f"{tasks}?limit=2", bearer=bearer)
    assert [task["id"] for task in listed.body] == [made.body["id"], task_id(60)], listed
    patched = ask(server, "PATCH", task, {"description": "Two litres"}, bearer=bearer)
    changed = made.body | {"description": "Two litres"}
    moved = {name: patched.body[name] for name in ("updated_at", "revision")}
    assert patched.body == changed | moved, patched
    assert moved["revision"] == made.body["revision"] + 1, patched
    completed = ask(server, "PATCH", f"{task}/complete", {"completed": True}, bearer=bearer)
    assert completed.body["completed"] is True, completed
    assert data.changes() == before + 3, "as many changes as requests"
    found = {
        "a blank title": status("POST", tasks, {"title": "  "}),
        "a title that is a number": status("POST", tasks, {"title": 5}),
        "a long title": status("PATCH", task, {"title": "x" * 256}),
        "an unknown member": status("POST", tasks, {"title": "Buy", "due": "now"}),
        "no boolean": status("PATCH", f"{task}/complete", {"completed": "yes"}),
        "a limit of 201": status("GET", f"{tasks}?limit=201"),
    }
    assert set(found.values()) == {422}, found
    gone = {
        "no such task": status("GET", f"{tasks}/{task_id(0)}"),
        "another user's": status("GET", f"{tasks}/{task_id(61)}"),
        "another user's, to be changed": status("PATCH", f"{tasks}/{task_id(61)}", {"title": "x"}),
        "another user's, to be deleted": status("DELETE", f"{tasks}/{task_id(61)}"),
    }
    if tokens:
        gone["another user's path"] = status("GET", f"/api/{user_id(2)}/tasks")
        assert status("GET", task, token=None) == 401, "no token"  # noqa: PLR2004
        assert status("GET", task, token=f"{token(1)[:-4]}AAAA") == 401, "bad"  # noqa: PLR2004
    assert status("DELETE", task) == 204, "deleting"  # noqa: PLR2004
    gone["deleted"] = status("GET", task)
    assert set(gone.values()) == {404}, gone
