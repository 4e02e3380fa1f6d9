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
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import ROOT, SECRET, SENT_DUE_AT, SENT_MEMBERS, WRITES, read_stat, task_id, token, user_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from email.message import Message

    from data import Data

PEERS = Path(__file__).parent / "peers"
VENV = ROOT / ".venv-bench"
WORKERS, THREADS = 2, 4

ALL = tuple(WRITES)
WITHOUT_CONDITIONAL_GET = tuple(name for name in ALL if name != "not_modified")


@dataclass(frozen=True)
class System:
    """A server to compare. Its command contains `{port}` and `{workers}`.

    The values of `environ` can contain `{folder}`, a folder for files. A system that
    `is_conditional` sends ETags and request ids, and evaluates preconditions. An upper bound has no
    database and always sends the same response.
    """

    name: str
    command: tuple[str | Path, ...]
    operations: tuple[str, ...] = WITHOUT_CONDITIONAL_GET
    folder: Path = PEERS
    environ: Mapping[str, str] = field(default_factory=dict)
    is_conditional: bool = False
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
    is_conditional=True,
)
# With a near database, one thread can be faster: more threads compete for the GIL.
ONE_THREAD = replace(
    THIS_API, name="this API, one thread", environ={**THIS_API.environ, "WEB_THREADS": "1"}
)
SQLMODEL = System("FastAPI + SQLModel", uvicorn("fastapi_sqlmodel:app"))
ASYNCPG = System("FastAPI + asyncpg", uvicorn("fastapi_asyncpg:app"))
PYDANTIC = System("FastAPI + asyncpg + pydantic", uvicorn("fastapi_asyncpg_pydantic:app"))
GUARANTEES = System(
    "FastAPI + asyncpg, same guarantees",
    uvicorn("fastapi_guarantees:app"),
    ALL,
    environ={"PROMETHEUS_MULTIPROC_DIR": "{folder}"},
    is_conditional=True,
)
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
    PYDANTIC,
    GUARANTEES,
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
    values = {"port": str(port), "workers": str(workers), "folder": str(log.parent)}
    environ = {name: value.format(**values) for name, value in system.environ.items()}
    environ = {
        "DATABASE_URL": database_url,
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
        "WEB_THREADS": str(threads),
        "AUTH_MODE": "jwt" if tokens else "none",
        "JWT_SECRET": SECRET if tokens else "",
    } | environ
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [str(part).format(**values) for part in system.command],
            cwd=system.folder,
            env=os.environ | environ,
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
    headers: Message = field(compare=False)


def send_request(
    server: Server,
    method: str,
    path: str,
    body: object = None,
    *,
    bearer: str | None = None,
    **more_headers: str,
) -> Response:
    headers = {name.replace("_", "-"): value for name, value in more_headers.items()}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read()
            return Response(response.status, json.loads(text) if text else None, response.headers)
    except urllib.error.HTTPError as error:
        error.close()
        return Response(error.code, None, error.headers)


# The members that the server sets.
SET_BY_SERVER = {
    *("id", "user_id", "completed_at", "due_at", "list_id", "parent_id", "position"),
    *("created_at", "updated_at", "revision"),
}

# What the task becomes by a request, and the request's body with all members that it can write.
NUMBER = "1"
SENT = json.loads(json.dumps(SENT_MEMBERS).replace("%d", NUMBER))
NEW = {
    "title": "  Call the bank ",
    "description": None,
    "completed": False,
    "priority": "low",
    "labels": [" phone ", "bank"],
    "due_date": "2027-02-01",
    "due_time": "17:00:00",
    "time_zone": "America/New_York",
    "start_date": "2027-01-31",
    "metadata": {"source": "call", "number": "5"},
}
CREATED = NEW | {"title": "Call the bank", "labels": ["bank", "phone"], "completed_at": None}
# A merge patch keeps the keys of `metadata` that it does not name.
PATCHED = CREATED | SENT | {"metadata": NEW["metadata"] | SENT["metadata"]}
DUE_AT = "2027-02-01T22:00:00Z"


def check(server: Server, data: Data, *, tokens: bool) -> None:
    """Assert that a system does the work of all operations, and refuses invalid requests."""
    tasks = f"/api/{user_id(1)}/tasks"
    bearer = token(1) if tokens else None

    def send(method: str, path: str, body: object = None, **headers: str) -> Response:
        return send_request(server, method, path, body, bearer=bearer, **headers)

    def status(method: str, path: str, body: object = None, token: str | None = bearer) -> int:
        return send_request(server, method, path, body, bearer=token).status

    if server.system.is_upper_bound:
        assert status("GET", f"{tasks}/{task_id(1)}") == 200  # noqa: PLR2004
        return
    changes_before = data.changes()
    created = send("POST", tasks, NEW)
    assert created.status == 201, created  # noqa: PLR2004
    assert created.body.keys() == {*NEW, *SET_BY_SERVER}, created
    assert without(created.body, SET_BY_SERVER - {"completed_at"}) == CREATED, created
    assert same_time(created.body["due_at"], DUE_AT), created
    task = f"{tasks}/{created.body['id']}"
    assert send("GET", task) == Response(200, created.body, created.headers)
    listed = send("GET", f"{tasks}?limit=2")
    assert listed.body[0] == created.body, listed
    assert listed.body[1]["id"] == task_id(60), listed
    patched = send("PATCH", task, SENT)
    assert without(patched.body, SET_BY_SERVER - {"completed_at"}) == PATCHED, patched
    assert same_time(patched.body["due_at"], SENT_DUE_AT), patched
    assert patched.body["revision"] == created.body["revision"] + 1, patched
    completion = {"completed": True}
    completed = send("PATCH", f"{task}/complete", completion)
    assert completed.body["completed"] is True, completed
    assert same_time(completed.body["completed_at"], completed.body["updated_at"]), completed
    assert data.changes() == changes_before + 3, "The number of changes is not that of the writes."
    moved = send("PATCH", task, {"due_time": "10:30:00", "metadata": {"number": None}})
    assert same_time(moved.body["due_at"], "2026-11-21T09:30:00Z"), moved
    assert moved.body["metadata"] == SENT["metadata"], moved
    if server.system.is_conditional:
        check_conditions(send, tasks, task, moved)
    invalid = {
        "a blank title": status("POST", tasks, {"title": "  "}),
        "a title that is a number": status("POST", tasks, {"title": 5}),
        "a long title": status("PATCH", task, {"title": "x" * 256}),
        "an unknown member": status("POST", tasks, {"title": "Buy", "due": "now"}),
        "a text as boolean": status("PATCH", f"{task}/complete", {"completed": "yes"}),
        "a limit of 201": status("GET", f"{tasks}?limit=201"),
        "an unknown priority": status("POST", tasks, NEW | {"priority": "urgent"}),
        "labels as a text": status("POST", tasks, NEW | {"labels": "shop"}),
        "labels that differ in case": status("PATCH", task, {"labels": ["shop", "Shop"]}),
        "a day that does not exist": status("POST", tasks, NEW | {"due_date": "2026-02-30"}),
        "a time without a day": status("POST", tasks, {"title": "Buy", "due_time": "09:30:00"}),
        "an unknown time zone": status("POST", tasks, NEW | {"time_zone": "Europe"}),
        "a start after the due date": status("PATCH", task, {"start_date": "2026-11-22"}),
        "a number in the metadata": status("PATCH", task, {"metadata": {"source": 1}}),
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


def check_conditions(send: Callable[..., Response], tasks: str, task: str, now: Response) -> None:
    """Assert that a system sends ETags and request ids, and evaluates preconditions."""
    etag, old_etag = (f'"{now.body["revision"] - age}"' for age in (0, 1))
    assert now.headers["ETag"] == etag, now.headers
    assert send("GET", task, X_Request_Id="an-id").headers["X-Request-Id"] == "an-id"
    statuses = {
        "GET, the same": send("GET", task, If_None_Match=etag).status,
        "GET, another": send("GET", task, If_None_Match=old_etag).status,
        "PATCH of another": send("PATCH", task, {"title": "x"}, If_Match=old_etag).status,
        "PATCH of the same": send("PATCH", task, {"title": "x"}, If_Match=etag).status,
        "DELETE of another": send("DELETE", task, If_Match=etag).status,
    }
    assert list(statuses.values()) == [304, 200, 412, 200, 412], statuses
    tag = send("GET", f"{tasks}?limit=2").headers["ETag"]
    assert send("GET", f"{tasks}?limit=2", If_None_Match=tag).status == 304  # noqa: PLR2004
    assert send("GET", f"{tasks}?limit=3", If_None_Match=tag).status == 200  # noqa: PLR2004


def without(members: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


def same_time(one: str, other: str) -> bool:
    return datetime.fromisoformat(one) == datetime.fromisoformat(other)
