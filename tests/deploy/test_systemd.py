"""The systemd units of deploy/, checked by systemd, and gunicorn as a service."""

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
    """Copies of the units, with paths that exist on this machine."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/todo-api/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("/opt/todo-api", "/"))
    return [str(unit) for unit in tmp_path.iterdir()]


def analyze(*arguments: str) -> str:
    """Run systemd-analyze, check that it succeeds, and return its output."""
    process = subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@needs_systemd
def test_systemd_finds_no_errors_in_the_units(units):
    output = analyze("verify", "--man=no", "--recursive-errors=no", *units)

    # Other units of this machine may have faults.
    assert "todo-api" not in output, output


@needs_systemd
@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.stem)
def test_service_has_a_low_exposure_level(service):
    """On systemd's scale from 0 to 10, a value below 2 is "OK"."""
    analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(service))


def test_every_service_has_the_same_sandbox():
    sandboxes = {
        service.read_text()
        .partition("# The service writes only")[2]
        .partition("[Install]")[0]
        .strip()
        for service in SERVICES
    }

    assert len(sandboxes) == 1
    assert "NoNewPrivileges=yes\n" in sandboxes.pop()


def test_systemd_stops_later_than_gunicorns_timeout():
    output = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--print-config"],
        cwd=ROOT,
        env=environment(DATABASE_URL="postgresql://", AUTH_MODE="none"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    graceful = int(re.search(r"^graceful_timeout += (\d+)", output, re.MULTILINE)[1])
    unit = (UNITS / "todo-api.service").read_text()
    compose = (ROOT / "deploy" / "docker" / "compose.yaml").read_text()

    assert int(re.search(r"TimeoutStopSec=(\d+)\n", unit)[1]) == graceful + 5
    assert int(re.search(r"graceful_timeout.*\n +stop_grace_period: (\d+)s", compose)[1]) == (
        graceful + 5
    )


def test_gunicorn_notifies_systemd_when_it_listens(database_url, tmp_path):
    """Type=notify requires a datagram to NOTIFY_SOCKET (sd_notify)."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(30)
        api = Api(database_url, tmp_path / "log", NOTIFY_SOCKET=name)
        api.start()
        try:
            message = systemd.recv(1024).decode()
            with socket.create_connection(api.address, timeout=5):
                pass
        finally:
            api.stop()

    assert "READY=1" in message.splitlines()


def test_modules_and_pages_of_the_units_exist():
    """Check each module that a unit starts, and each page that it names."""
    text = "".join(unit.read_text() for unit in UNITS.iterdir())

    modules = set(re.findall(r"python -m (\S+)", text))
    pages = set(re.findall(r"file:///opt/todo-api/(\S+)", text))

    assert modules == {"gunicorn", "alembic", "todo_api.commands.purge"}
    assert all(Path(ROOT / page).is_file() for page in pages)
