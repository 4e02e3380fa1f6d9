"""`make run` in its own process with its own PostgreSQL: restarts, crashes, stops, output."""

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
import urllib.error
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from fault_injection.servers import wait_until
from tests.support import ROOT
from tests.support.make_run import CHECKOUT, TASKS, Server, database_folder_of, make_token, running
from todo_api.commands import embedded

pytestmark = pytest.mark.slow


def test_tasks_and_secret_remain_after_a_restart(checkout):
    folder = checkout()
    secret_file = folder / ".dev" / "secret"
    with running(folder) as server:
        secret = secret_file.read_text()
        status, written = server.request(TASKS, {"title": "Buy oat milk"})
        assert status == 201

    with running(folder) as server:
        assert server.request(TASKS) == (200, [written])
        assert secret_file.read_text() == secret

    assert len(secret) == 64
    assert secret_file.stat().st_mode & 0o777 == 0o600, "Only the owner may read the secret."


def test_tasks_remain_after_a_crash_of_both_servers(checkout):
    """Both servers are killed with SIGKILL, so they cannot stop properly."""
    folder = checkout()
    server = Server(folder)
    server.await_health()
    _, written = server.request(TASKS, {"title": "Buy oat milk"})
    server.crash(database=True)

    with running(folder) as server:
        assert server.request(TASKS) == (200, [written])


def test_running_database_is_used_by_the_next_start(checkout):
    folder = checkout()
    server = Server(folder)
    server.await_health()
    _, written = server.request(TASKS, {"title": "Buy oat milk"})
    server.crash(database=False)

    with running(folder) as server:
        assert server.request(TASKS) == (200, [written])

    assert not (database_folder_of(folder) / "postmaster.pid").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_server_and_its_database(checkout, signal_number):
    folder = checkout()
    server = Server(folder)
    server.await_health()
    socket_folder = (database_folder_of(folder) / "postmaster.pid").read_text().splitlines()[4]

    server.end(signal_number)

    assert server.process.returncode == 0
    assert not (database_folder_of(folder) / "postmaster.pid").exists()
    assert not Path(socket_folder).exists()


def test_output_shows_the_url_and_working_commands(checkout):
    with running(checkout()) as server:
        printed = []
        for line in server.process.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        script = "\n".join(line for line in printed if re.match(r"\s+(TASKS=|TOKEN=|curl )", line))

        output = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert f"  The API is at   {server.url}\n" in printed
    assert f"  Its docs are at {server.url}/docs\n" in printed
    created, end = json.JSONDecoder().raw_decode(output)
    assert created["title"] == "Buy oat milk"
    assert json.loads(output[end:]) == [created]


def test_second_start_reports_the_running_server(checkout):
    folder = checkout()
    with running(folder) as server:
        second = Server(folder)
        output = second.process.communicate(timeout=30)[0]

        assert second.process.returncode == 1
        assert f"`make run` runs already (process {server.process.pid})" in output
        assert server.request(TASKS) == (200, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_taken_port_is_an_error_before_anything_starts(checkout, host):
    folder = checkout()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = Server(folder, PORT=port, HOST=host)
        output = server.process.communicate(timeout=60)[0]

    assert server.process.returncode == 1
    assert output == (
        f"Port {port} of {host} is in use by another process: stop that process, or choose"
        " another port with PORT.\n"
    )
    assert not database_folder_of(folder).exists()


def test_a_host_that_is_not_this_machine_is_reported_before_anything_is_started(checkout):
    folder = checkout()
    server = Server(folder, HOST="192.0.2.1")
    output = server.process.communicate(timeout=60)[0]

    assert server.process.returncode == 1
    assert output.startswith("The server cannot listen on 192.0.2.1, port ")
    assert output.count("\n") == 1
    assert not database_folder_of(folder).exists()


def is_importing(server: Server) -> bool:
    return "/psycopg" in Path(f"/proc/{server.process.pid}/maps").read_text()


def is_initializing(server: Server) -> bool:
    return any(database_folder_of(server.folder).parent.glob("tmp*/PG_VERSION"))


def is_starting_database(server: Server) -> bool:
    return (database_folder_of(server.folder) / "postmaster.pid").exists()


def is_starting_gunicorn(server: Server) -> bool:
    return any("gunicorn" in command for command in commands_of(server.folder))


def has_a_worker(server: Server) -> bool:
    return sum("gunicorn" in command for command in commands_of(server.folder)) > 1


def commands_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that run in the folder or on its data."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (process / "cwd").readlink() == folder or str(database_folder_of(folder)) in command:
                commands.append(command)
    return commands


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "is_reached",
    [is_importing, is_initializing, is_starting_database, is_starting_gunicorn, has_a_worker],
    ids=lambda is_reached: is_reached.__name__,
)
def test_a_signal_during_the_start_leaves_no_process_and_no_traceback(checkout, is_reached, how):
    folder = checkout()
    server = Server(folder)
    wait_until(lambda: is_reached(server), is_reached.__name__)

    output = server.end(how)

    assert server.process.returncode in (-how, 128 + how, 128 + signal.SIGTERM, 0)
    assert "Traceback" not in output
    wait_until(lambda: not commands_of(folder), "no process is left", seconds=5)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_migration_that_waits(checkout, new_database, how):
    url = new_database("waits")
    folder = checkout()
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(8101977)")  # MIGRATION_LOCK of migrations/env.py
        server = Server(folder, DATABASE_URL=url)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: other.execute(waiting).fetchone() == (1,), "the migration waits")

        output = server.end(how)

        wait_until(lambda: other.execute(waiting).fetchone() == (0,), "the migration has ended")
    assert server.process.returncode == 128 + how
    assert "Traceback" not in output
    assert commands_of(folder) == []


def test_a_second_signal_does_not_interrupt_the_stop(checkout):
    folder = checkout()
    server = Server(folder)
    wait_until(lambda: is_initializing(server), "initdb runs")
    os.kill(server.process.pid, signal.SIGINT)
    os.kill(server.process.pid, signal.SIGTERM)

    output = server.end()

    assert "Traceback" not in output
    wait_until(lambda: not commands_of(folder), "no process is left", seconds=5)


def test_database_url_is_used_instead_of_an_embedded_database(checkout, new_database):
    folder = checkout()
    with running(folder, DATABASE_URL=new_database("run")) as server:
        assert server.request(TASKS, {"title": "Buy oat milk"})[0] == 201

    assert not database_folder_of(folder).exists()


def test_token_of_another_checkout_is_refused(checkout, tmp_path):
    other = checkout(tmp_path / "other")
    with running(checkout(tmp_path / "this")) as server:
        server.token = make_token(other, server.environ | {"PYTHONPATH": str(other)})
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.request(TASKS)

    with refused.value as response:
        assert response.code == 401


def test_printed_commands_contain_no_token_without_authentication(checkout):
    with running(checkout(), AUTH_MODE="none") as server:
        printed = ""
        for line in server.process.stdout:
            printed += line
            if "Ctrl-C" in line:
                break

    assert "curl -s $TASKS\n" in printed
    assert "TOKEN" not in printed


@pytest.mark.parametrize("name", ["with spaces in it", "long/" + "/".join(["x" * 40] * 4), "$a'b"])
def test_checkout_may_have_any_path(checkout, tmp_path, name):
    with running(checkout(tmp_path / name)) as server:
        assert server.request(TASKS, {"title": "Buy oat milk"})[0] == 201


def test_programs_refuse_data_of_another_version():
    with (
        embedded.temporary_cluster(version=16) as cluster,
        pytest.raises(embedded.EmbeddedError, match="PostgreSQL 16 made"),
    ):
        embedded.Cluster(cluster.data.parent).start()


def test_failed_start_shows_the_log():
    with (
        pytest.raises(embedded.EmbeddedError, match="invalid value for parameter"),
        embedded.temporary_cluster(options={"shared_buffers": "nonsense"}),
    ):
        pytest.fail("the server started")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ordinary_user_can_run_the_server():
    """Run a copy of the source, in a folder that the ordinary user may read."""
    account = embedded.find_account()
    python = Path(sys.executable).resolve().parent
    site_packages = Path(find_spec("flask").origin).parent.parent
    for folder in (python, site_packages):
        if not account.can_enter(folder):
            pytest.skip(f"{folder} cannot be read by an ordinary user")
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(home) / name)
        shutil.chown(home, account.uid, account.gid)
        with running(Path(home), user=account.uid) as server:
            assert server.request(TASKS, {"title": "Buy oat milk"})[0] == 201
        assert (Path(home) / ".dev" / "data").stat().st_uid == account.uid


def test_readme_shows_the_responses_of_its_commands(checkout):
    """Run every command of the README's console blocks in one shell, in order, on a new server."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).splitlines()
    folder = checkout()
    with running(folder) as server:
        script = "\n".join(
            # `echo` ends the response with a line break, so that each one has its own lines.
            f"{line[2:]}\necho" if "=" not in line.split()[1] else line[2:]
            for line in lines
            if line.startswith("$ ")
        )
        script = script.replace("http://127.0.0.1:8000", server.url)
        script = script.replace("make -s token USER_ID=$USER_ID", TOKEN_COMMAND)
        process = subprocess.run(
            ["sh", "-ec", script],
            cwd=folder,
            env=server.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    responses = [line for line in process.stdout.splitlines() if line]
    printed = [line for line in lines if not line.startswith("$ ")]
    assert replace_varying_parts(responses) == replace_varying_parts(printed)


TOKEN_COMMAND = '"$PYTHON" -m todo_api.commands.token $USER_ID'


def replace_varying_parts(lines: list[str]) -> list[str]:
    """Replace what differs in each run: ids, times, positions and revisions, which get numbers."""
    text = "\n".join(lines)
    text = re.sub(r"01[0-9a-f]{6}-[0-9a-f]{4}-7[0-9a-f-]{21}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "MOMENT", text)
    text = re.sub(r'"position":"\w+"', '"position":"POSITION"', text)
    numbers: dict[str, int] = {}
    return re.sub(
        r"\b\d{16}\b", lambda match: f"{numbers.setdefault(match[0], len(numbers))}", text
    ).splitlines()
