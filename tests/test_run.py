"""`make run` for real: another process, its own PostgreSQL, kept data, a clean end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from todo_api import embedded

ROOT = Path(__file__).parent.parent
CHECKOUT = ["todo_api", "migrations", "wsgi.py", "gunicorn.conf.py", "pyproject.toml"]
USER = "5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10"
TASKS = f"/api/{USER}/tasks"


@pytest.fixture
def checkout(tmp_path: Path):
    """Make a folder in which the server can be run: the source, but none of this run's data."""
    made = []

    def make(path: Path = tmp_path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        for name in CHECKOUT:
            (path / name).symlink_to(ROOT / name)
        made.append(path)
        return path

    yield make
    for path in made:
        shutil.rmtree(data_of(path).parent, ignore_errors=True)


class Server:
    """What `make run` starts, by the command that it runs."""

    def __init__(self, folder: Path, user: int | None = None, **environ: str) -> None:
        self.folder = folder
        self.port = environ.pop("PORT", None) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "AUTH_MODE")}
        self.environ = kept | {"PORT": str(self.port), "PYTHONPATH": str(folder)} | environ
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "todo_api.run"],
            cwd=folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=user,
        )

    def await_health(self) -> float:
        """Seconds from the start to the first 200 of /health."""
        while time.monotonic() < self.started + 30 and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return time.monotonic() - self.started
            except OSError:
                time.sleep(0.02)
        pytest.fail(self.end())

    def get(self, path: str, body: object = None):
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | self.authorization(),
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)

    def authorization(self) -> dict[str, str]:
        """A token from `make token`'s command, in the folder of the server."""
        made = subprocess.run(
            [sys.executable, "-m", "todo_api.run", "token", USER],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return {"Authorization": f"Bearer {made.stdout.strip()}"}

    def crash(self, *, database: bool) -> None:
        """Kill every process of it at once, that of the database only if told to."""
        processes = [self.process.pid, *descendants(self.process.pid)]
        postmaster = int((data_of(self.folder) / "postmaster.pid").read_text().splitlines()[0])
        for process in processes:
            if database or process not in (postmaster, *descendants(postmaster)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.communicate(timeout=30)

    def end(self, how: signal.Signals = signal.SIGINT) -> str:
        """Send the signal as a terminal does, to every process of the group; the output."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        return self.process.communicate(timeout=30)[0]


@contextmanager
def running(folder: Path, **options: Any):
    server = Server(folder, **options)
    try:
        server.await_health()
        yield server
    finally:
        server.end()


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [each for child in children for each in (int(child), *descendants(int(child)))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def data_of(folder: Path) -> Path:
    return embedded.Cluster(folder / ".dev").data


def test_what_is_written_is_there_after_a_restart(checkout):
    folder = checkout()
    with running(folder) as server:
        status, written = server.get(TASKS, {"title": "Buy oat milk"})
        assert status == 201

    with running(folder) as server:
        assert server.get(TASKS) == (200, [written])


def test_what_is_written_survives_a_crash_of_all(checkout):
    """Both servers are killed, without a word; the next start takes over."""
    folder = checkout()
    server = Server(folder)
    server.await_health()
    _, written = server.get(TASKS, {"title": "Buy oat milk"})
    server.crash(database=True)

    with running(folder) as server:
        assert server.get(TASKS) == (200, [written])


def test_a_database_that_was_left_running_is_taken_over(checkout):
    folder = checkout()
    server = Server(folder)
    server.await_health()
    _, written = server.get(TASKS, {"title": "Buy oat milk"})
    server.crash(database=False)

    with running(folder) as server:
        assert server.get(TASKS) == (200, [written])

    assert not (data_of(folder) / "postmaster.pid").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_and_its_database(checkout, how):
    folder = checkout()
    server = Server(folder)
    server.await_health()
    socket_folder = (data_of(folder) / "postmaster.pid").read_text().splitlines()[4]

    server.end(how)

    assert server.process.returncode == 0
    assert not (data_of(folder) / "postmaster.pid").exists()
    assert not Path(socket_folder).exists()


def test_it_says_where_it_is_and_how_to_try_it(checkout):
    with running(checkout()) as server:
        printed = []
        for line in server.process.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        script = "\n".join(line for line in printed if re.match(r"\s+(TASKS=|TOKEN=|curl )", line))

        pasted = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert f"  The API is at   {server.url}\n" in printed
    assert f"  Its page is at  {server.url}/docs\n" in printed
    created, end = json.JSONDecoder().raw_decode(pasted)
    assert created["title"] == "Buy oat milk"
    assert json.loads(pasted[end:]) == [created]


def test_a_second_one_says_that_one_runs(checkout):
    folder = checkout()
    with running(folder) as server:
        second = Server(folder)
        output = second.process.communicate(timeout=30)[0]

        assert second.process.returncode == 1
        assert f"It runs already (process {server.process.pid})" in output
        assert server.get(TASKS) == (200, [])


def test_a_port_that_is_taken_ends_it_and_the_database(checkout):
    folder = checkout()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(folder, PORT=str(taken.getsockname()[1]))
        output = server.process.communicate(timeout=60)[0]

    assert server.process.returncode == 1
    assert "in use" in output
    assert not (data_of(folder) / "postmaster.pid").exists()


def test_a_database_of_ones_own_is_used_and_no_other_started(checkout, new_database):
    folder = checkout()
    with running(folder, DATABASE_URL=new_database("run")) as server:
        assert server.get(TASKS, {"title": "Buy oat milk"})[0] == 201

    assert not data_of(folder).exists()


def test_the_secret_is_made_once_and_for_its_owner_only(checkout):
    folder = checkout()
    with running(folder):
        made = (folder / ".dev" / "secret").read_text()
    with running(folder):
        assert (folder / ".dev" / "secret").read_text() == made

    assert len(made) == 64
    assert (folder / ".dev" / "secret").stat().st_mode & 0o777 == 0o600


def test_a_token_of_another_checkout_means_nothing(checkout, tmp_path):
    with running(checkout(tmp_path / "one")) as one, running(checkout(tmp_path / "two")) as two:
        two.authorization = one.authorization
        with pytest.raises(urllib.error.HTTPError) as refused:
            two.get(TASKS)

    with refused.value as answer:
        assert answer.code == 401


def test_without_tokens_the_lines_that_it_prints_have_none(checkout):
    with running(checkout(), AUTH_MODE="none") as server:
        printed = ""
        for line in server.process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break

    assert "curl -s $TASKS\n" in printed
    assert "TOKEN" not in printed


@pytest.mark.parametrize("name", ["with spaces in it", "long/" + "/".join(["x" * 40] * 4), "$a'b"])
def test_any_path_will_do(checkout, tmp_path, name):
    with running(checkout(tmp_path / name)) as server:
        assert server.get(TASKS, {"title": "Buy oat milk"})[0] == 201


def test_programs_of_another_version_refuse_the_data():
    with (
        embedded.temporary_cluster(version=16) as cluster,
        pytest.raises(embedded.EmbeddedError, match="made by PostgreSQL 16"),
    ):
        embedded.Cluster(cluster.data.parent).start()


def test_a_server_that_does_not_start_shows_its_log():
    with (
        pytest.raises(embedded.EmbeddedError, match="invalid value for parameter"),
        embedded.temporary_cluster(options={"shared_buffers": "nonsense"}),
    ):
        pytest.fail("it started")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_can_run_it():
    """With copies of the source and the programs where everybody may look."""
    nobody = embedded.account()
    python = Path(sys.executable).resolve().parent
    site_packages = Path(embedded.find_spec("flask").origin).parent.parent
    for needed in (python, site_packages):
        if not nobody.may_enter(needed):
            pytest.skip(f"{needed} is not for everybody, as an ordinary user's would be")
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(home) / name)
        shutil.chown(home, nobody.uid, nobody.gid)
        with running(Path(home), user=nobody.uid) as server:
            assert server.get(TASKS, {"title": "Buy oat milk"})[0] == 201
        assert (Path(home) / ".dev" / "data").stat().st_uid == nobody.uid


def test_the_readmes_tour_answers_as_printed(checkout):
    """Every command of its console blocks, in order, in one shell, against a server of its own."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).splitlines()
    folder = checkout()
    with running(folder) as server:
        script = "\n".join(
            # A line of its own before each answer; then none is lost, whatever ends it.
            f"{line[2:]}\necho" if "=" not in line.split()[1] else line[2:]
            for line in lines
            if line.startswith("$ ")
        )
        script = script.replace("http://127.0.0.1:8000", server.url)
        script = script.replace("make -s token USER_ID=$USER_ID", TOKEN_COMMAND)
        toured = subprocess.run(
            ["sh", "-ec", script],
            cwd=folder,
            env=server.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    answered = [line for line in toured.stdout.splitlines() if line]
    printed = [line for line in lines if not line.startswith("$ ")]
    assert [timeless(line) for line in answered] == [timeless(line) for line in printed]


TOKEN_COMMAND = '"$PYTHON" -m todo_api.run token $USER_ID'


def timeless(line: str) -> str:
    """The line without what differs each time: ids that the server makes, and moments."""
    line = re.sub(r"01[0-9a-f]{6}-[0-9a-f]{4}-7[0-9a-f-]{21}", "ID", line)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "MOMENT", line)
