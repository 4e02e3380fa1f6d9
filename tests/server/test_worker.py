"""The worker goes on after whatever one request does to it, or ends and is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from http.client import HTTPConnection, HTTPException

import pytest

from fault_injection.servers import ROOT, free_port, wait_until

APPS = ROOT / "tests" / "apps"
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
THREADS = 2


@pytest.fixture
def server(tmp_path):
    """One worker that serves `harmful.app`; yields how to ask it, and its log."""
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}"),
                *("--worker-class", "todo_api.server.worker.Worker", "--threads", str(THREADS)),
                *("--no-control-socket", "--keep-alive", "30", "harmful:app"),
            ],
            cwd=APPS,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | COVERAGE,
            stdout=stream,
            stderr=stream,
        )

    def ask(path: str) -> tuple[int, str | None]:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers["X-Worker"]
        finally:
            connection.close()

    def answers() -> bool:
        try:
            return ask("/")[0] == 200
        except OSError:
            return False

    try:
        wait_until(answers, "the server answers")
        yield ask, log
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("path", ["/exit", "/raise", "/break-off"])
def test_a_request_that_fails_costs_no_thread(server, path):
    ask, log = server
    _, worker = ask("/")

    for _ in range(2 * THREADS):
        try:
            status, _ = ask(path)
        except (HTTPException, OSError):
            status = None
        assert status == (500 if path == "/raise" else None)

    assert ask("/") == (200, worker)
    assert "ValueError" in log.read_text() or "SystemExit" in log.read_text()


def test_a_worker_whose_loop_ends_is_replaced(server):
    ask, log = server
    _, worker = ask("/")

    ask("/break-loop")

    def is_replaced():
        try:
            return ask("/") != (200, worker)
        except (HTTPException, OSError):
            return False

    wait_until(is_replaced, "another worker answers")
    assert "a serve loop ended, so the worker stops" in log.read_text()
