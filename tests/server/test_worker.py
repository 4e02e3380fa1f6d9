"""The worker survives requests that fail, and is replaced when its serve loop ends."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

import pytest

from fault_injection.servers import wait_until
from tests.support.worker_server import worker_server

THREADS = 2


@pytest.fixture
def server(tmp_path):
    """Start one worker that serves `harmful.app`; return a function that requests, and the log."""
    log = tmp_path / "log"
    options = ["--threads", str(THREADS), "--keep-alive", "30"]
    # A worker whose loop has ended serves nothing for the rest of this time, then it is replaced.
    options += ["--graceful-timeout", "3"]

    def get(path: str) -> tuple[int, str | None]:
        connection = HTTPConnection(*address, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers["X-Worker"]
        finally:
            connection.close()

    def is_up() -> bool:
        try:
            return get("/")[0] == 200
        except OSError:
            return False

    with worker_server("harmful:app", log, *options) as (_, address):
        wait_until(is_up, "the server responds")
        yield get, log


@pytest.mark.parametrize("path", ["/exit", "/raise", "/break-off"])
def test_failed_request_ends_no_thread(server, path):
    get, log = server
    _, worker = get("/")

    for _ in range(2 * THREADS):
        try:
            status, _ = get(path)
        except (HTTPException, OSError):
            status = None
        assert status == (500 if path == "/raise" else None)

    assert get("/") == (200, worker)
    assert "ValueError" in log.read_text() or "SystemExit" in log.read_text()


def test_worker_is_replaced_when_its_loop_ends(server):
    get, log = server
    _, worker = get("/")

    get("/break-loop")

    def is_replaced():
        try:
            return get("/") != (200, worker)
        except (HTTPException, OSError):
            return False

    wait_until(is_replaced, "another worker responds")
    assert "the worker stops: a serve loop ended with an exception" in log.read_text()
