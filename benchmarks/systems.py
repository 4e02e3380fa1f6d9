"""The compared systems: this API, other frameworks and upper bounds; how to run and check them."""

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
WITHOUT_CONDITIONAL_GET = tuple(name for name in ALL if name != "not_modified")


@dataclass(frozen=True)
class System:
    """A server to compare. Its command contains `{port}` and `{workers}`.

    An upper bound has no database and always sends the same response.
    """

    name: str
    command: tuple[str | Path, ...]
    operations: tuple[str, ...] = WITHOUT_CONDITIONAL_GET
    folder: Path = PEERS
    environ: Mapping[str, str] = field(default_factory=dict)
    is_upper_bound: bool = False


def gunicorn(python: str | Path, application: str, *options: str) -> tuple[str | Path, ...]:
    return python, "-m", "gunicorn", "--config", PEERS / "gunicorn.conf.py", *options, application


def uvicorn(application: str) -> tuple[str | Path, ...]:
    options = ("--loop", "uvloop", "--http", "httptools", "--no-access-log")
    listen = ("--workers", "{workers}", "--port", "{port}")
    return VENV / "bin/python", "-m", "uvicorn", *options, *listen, application


THIS_API = System(
    "this API",
    (sys.executable, "-m", "gunicorn"),
    ALL,
    ROOT,
    # The empty values override settings of .env.
    {"JWT_JWKS_URL": "", "JWT_PUBLIC_KEY": "", "JWT_ISSUER": "", "JWT_AUDIENCE": ""}
    | {"LOG_LEVEL": "info", "METRICS": "true"},
)
# With a near database, one thread can be faster: more threads compete for the GIL.
ONE_THREAD = replace(
    THIS_API, name="this API, one thread", environ={**THIS_API.environ, "WEB_THREADS": "1"}
)
SQLMODEL = System("FastAPI + SQLModel", uvicorn("fastapi_sqlmodel:app"))
ASYNCPG = System("FastAPI + asyncpg", uvicorn("fastapi_asyncpg:app"))
FLASK_ORM = System("Flask-SQLAlchemy", gunicorn(VENV / "bin/python", "flask_sqlalchemy_orm:app"))
FASTIFY = System("Fastify + pg", ("node", PEERS / "fastify/server.mjs"))
BARE_FLASK = System(
    "bare Flask",
    gunicorn(sys.executable, "bare:flask"),
    ("get", "list", "create"),
    is_upper_bound=True,
)
BARE_WSGI = System(
    "bare WSGI",
    gunicorn(sys.executable, "bare:wsgi"),
    ("get", "list", "create"),
    is_upper_bound=True,
)
# The two systems above run in gunicorn's own worker, this one in the worker of this API.
OUR_WORKER = System(
    "bare Flask, our worker",
    gunicorn(sys.executable, "bare:flask", "-k", "todo_api.server.worker.Worker"),
    ("get", "list", "create"),
    environ={"PYTHONPATH": str(ROOT)},
    is_upper_bound=True,
)

SYSTEMS = (
    THIS_API,
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
    """Install the packages of the peers' lock files, unless they are installed."""
    lock = PEERS / "requirements.lock"
    installed = VENV / "installed"
    if not is_newer(installed, lock):
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
        pip = [VENV / "bin/python", "-m", "pip", "install", "--quiet"]
        options = ["--disable-pip-version-check", "--require-hashes", "-r", lock]
        subprocess.run([*pip, *options], check=True)
        installed.touch()
    if shutil.which("npm") is None:
        sys.exit("Node with npm is needed for one of the peers: Node 20 or later")
    folder = PEERS / "fastify"
    if not is_newer(folder / "node_modules/.package-lock.json", folder / "package-lock.json"):
        subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True)


def is_newer(target: Path, source: Path) -> bool:
    return target.exists() and target.stat().st_mtime > source.stat().st_mtime


@dataclass(frozen=True)
class Server:
    """A running system, with its URL and the id of its process group."""

    system: System
    url: str
    group: int

    def processes(self) -> list[int]:
        """Return the ids of the processes in its group."""
        processes = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(read_stat(folder)[2]) == self.group:
                    processes.append(int(folder.name))
        return processes

    def cpu(self) -> float:
        """Return the CPU time of its processes in seconds; 0 on a machine without /proc."""
        ticks = 0
        for process in self.processes():
            with suppress(OSError):
                fields = read_stat(Path(f"/proc/{process}"))
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> list[float]:
        """Return the resident memory of its workers in MB, the largest first."""
        sizes = []
        for process in self.processes():
            if process != self.group:
                pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
                sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        return sorted(sizes, reverse=True)


def read_stat(folder: Path) -> list[str]:
    """Return the fields of /proc/PID/stat after the name of the process (man 5 proc)."""
    return (folder / "stat").read_text().rpartition(") ")[2].split()


@contextmanager
def serving(
    system: System,
    database_url: str,
    log: Path,
    *,
    tokens: bool,
    workers: int = WORKERS,
    threads: int = THREADS,
) -> Iterator[Server]:
    """Run the system on a free port, with its output in `log`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
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
            [str(part).format(**values) for part in system.command],
            cwd=system.folder,
            env=os.environ | environ | system.environ,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        server = Server(system, f"http://127.0.0.1:{port}", process.pid)
        await_response(process, server.url, log)
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


def await_response(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for a response with any status: a server listens before its workers can serve."""
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
    raise RuntimeError(f"{log.stem} does not respond:\n{log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Response:
    status: int
    body: Any


def send_request(
    server: Server, method: str, path: str, body: object = None, *, bearer: str | None = None
) -> Response:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read()
            return Response(response.status, json.loads(text) if text else None)
    except urllib.error.HTTPError as error:
        error.close()
        return Response(error.code, None)


# The members that every system has. This API has more.
MEMBERS = {
    *("id", "user_id", "title", "description", "completed"),
    *("created_at", "updated_at", "revision"),
}


def check(server: Server, data: Data, *, tokens: bool) -> None:
    """Assert that a system does the work of all operations, and refuses invalid requests."""
    tasks = f"/api/{user_id(1)}/tasks"
    bearer = token(1) if tokens else None

    def status(method: str, path: str, body: object = None, token: str | None = bearer) -> int:
        return send_request(server, method, path, body, bearer=token).status

    if server.system.is_upper_bound:
        assert status("GET", f"{tasks}/{task_id(1)}") == 200  # noqa: PLR2004
        return
    changes_before = data.changes()
    created = send_request(server, "POST", tasks, {"title": "  Buy oat milk "}, bearer=bearer)
    assert created.status == 201, created  # noqa: PLR2004
    assert created.body.keys() >= MEMBERS, created
    assert created.body["title"] == "Buy oat milk", created
    task = f"{tasks}/{created.body['id']}"
    assert send_request(server, "GET", task, bearer=bearer) == Response(200, created.body)
    listed = send_request(server, "GET", f"{tasks}?limit=2", bearer=bearer)
    assert [task["id"] for task in listed.body] == [created.body["id"], task_id(60)], listed
    patched = send_request(server, "PATCH", task, {"description": "Two litres"}, bearer=bearer)
    changed = created.body | {"description": "Two litres"}
    set_by_trigger = {name: patched.body[name] for name in ("updated_at", "revision")}
    assert patched.body == changed | set_by_trigger, patched
    assert patched.body["revision"] == created.body["revision"] + 1, patched
    completion = {"completed": True}
    completed = send_request(server, "PATCH", f"{task}/complete", completion, bearer=bearer)
    assert completed.body["completed"] is True, completed
    assert data.changes() == changes_before + 3, "The number of changes is not that of the writes."
    invalid = {
        "a blank title": status("POST", tasks, {"title": "  "}),
        "a title that is a number": status("POST", tasks, {"title": 5}),
        "a long title": status("PATCH", task, {"title": "x" * 256}),
        "an unknown member": status("POST", tasks, {"title": "Buy", "due": "now"}),
        "a text as boolean": status("PATCH", f"{task}/complete", {"completed": "yes"}),
        "a limit of 201": status("GET", f"{tasks}?limit=201"),
    }
    assert set(invalid.values()) == {422}, invalid
    other = f"{tasks}/{task_id(61)}"  # a task of the second user
    missing = {
        "an unknown task": status("GET", f"{tasks}/{task_id(0)}"),
        "GET of another user's task": status("GET", other),
        "PATCH of another user's task": status("PATCH", other, {"title": "x"}),
        "DELETE of another user's task": status("DELETE", other),
    }
    if tokens:
        missing["another user's path"] = status("GET", f"/api/{user_id(2)}/tasks")
        assert status("GET", task, token=None) == 401, "no token"  # noqa: PLR2004
        forged = f"{token(1)[:-4]}AAAA"
        assert status("GET", task, token=forged) == 401, "a forged token"  # noqa: PLR2004
    assert status("DELETE", task) == 204, "DELETE"  # noqa: PLR2004
    missing["a deleted task"] = status("GET", task)
    assert set(missing.values()) == {404}, missing
