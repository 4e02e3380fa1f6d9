"""The units of deploy/ as systemd reads them, and gunicorn as a service of systemd."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fault_injection.servers import ROOT, Api, environment

pytestmark = pytest.mark.slow

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd is not installed (Debian: apt install systemd)",
)


@pytest.fixture
def units(tmp_path) -> list[str]:
    """The units, with a Python and a folder that are on this machine."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/todo-api/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("/opt/todo-api", "/"))
    return [str(unit) for unit in tmp_path.iterdir()]


def analyze(*arguments: str) -> str:
    """What systemd-analyze says, all of it."""
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@needs_systemd
def test_systemd_finds_no_fault_in_the_units(units):
    said = analyze("verify", "--man=no", "--recursive-errors=no", *units)

    # Not what this machine's own units are reproached with.
    assert "todo-api" not in said, said


@needs_systemd
@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.stem)
def test_a_service_is_exposed_little(service):
    """By systemd's own measure, from 0 to 10: below 2 is what it calls OK."""
    analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(service))


def test_every_service_is_shut_in_the_same_way():
    shut_in = {
        service.read_text().partition("# Nothing is written")[2].partition("[Install]")[0].strip()
        for service in SERVICES
    }

    assert len(shut_in) == 1
    assert "NoNewPrivileges=yes\n" in shut_in.pop()


def test_systemd_waits_for_longer_than_gunicorn():
    told = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--print-config"],
        cwd=ROOT,
        env=environment(DATABASE_URL="postgresql://", AUTH_MODE="none"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    graceful = int(re.search(r"^graceful_timeout += (\d+)", told, re.MULTILINE)[1])
    unit = (UNITS / "todo-api.service").read_text()
    compose = (ROOT / "deploy" / "docker" / "compose.yaml").read_text()

    assert int(re.search(r"TimeoutStopSec=(\d+)\n", unit)[1]) == graceful + 5
    assert int(re.search(r"graceful_timeout.*\n +stop_grace_period: (\d+)s", compose)[1]) == (
        graceful + 5
    )


def test_gunicorn_tells_systemd_that_it_listens(database_url, tmp_path):
    """As Type=notify asks for (sd_notify, a datagram to NOTIFY_SOCKET)."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(30)
        api = Api(database_url, tmp_path / "log", NOTIFY_SOCKET=name)
        api.start()
        try:
            told = systemd.recv(1024).decode()
            with socket.create_connection(api.address, timeout=5):
                pass
        finally:
            api.stop()

    assert "READY=1" in told.splitlines()


def test_what_the_units_run_is_there():
    """Each module that a unit starts, and each page that it names."""
    text = "".join(unit.read_text() for unit in UNITS.iterdir())

    modules = set(re.findall(r"python -m (\S+)", text))
    pages = set(re.findall(r"file:///opt/todo-api/(\S+)", text))

    assert modules == {"gunicorn", "alembic", "todo_api.commands.purge"}
    assert all(Path(ROOT / page).is_file() for page in pages)
