"""/metrics: off by default, with few label values, and one total for all gunicorn workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from joserfc.jwk import OKPKey
from prometheus_client.parser import text_string_to_metric_families
from psycopg_pool import ConnectionPool

from tests.support import ROOT
from tests.support.differences import assert_same_lines
from todo_api.metrics import KeySetMetrics, Metrics
from todo_api.server import worker_numbers

if TYPE_CHECKING:
    from todo_api.app import App

GUNICORN = Path(sys.executable).parent / "gunicorn"
TIMEOUT = 60  # seconds
WORKERS = 2
CONNECTIONS_PER_WORKER = 3  # one fewer than its threads


class Samples(dict):
    """The samples of a scrape by name and sorted labels."""

    def __init__(self, text: str) -> None:
        super().__init__(
            ((sample.name, *sorted(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def sum_of(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with this name and these labels, or 0."""
        return sum(
            value
            for (sample_name, *pairs), value in self.items()
            if sample_name == name and labels.items() <= dict(pairs).items()
        )


def wait_until(condition):
    """Wait until the condition returns a true value, and return the value."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    return pytest.fail("the condition did not become true")


def request(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Send a request on a new connection, so that any worker may accept it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


class Gunicorn:
    def __init__(self, folder: Path, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        settings = {"AUTH_MODE": "none", "METRICS": "true", "WEB_CONCURRENCY": str(WORKERS)}
        self.process = subprocess.Popen(
            # An upgrade of `-m gunicorn` puts gunicorn's folder before the standard library.
            [GUNICORN, "--config", ROOT / "gunicorn.conf.py"],
            # This folder has no .env.
            cwd=folder,
            env=inherited | settings | {"PORT": str(self.port), "PYTHONPATH": str(ROOT)} | environ,
            stderr=subprocess.DEVNULL,
        )

    def request(self, path: str, method: str = "GET") -> tuple[int, str]:
        return request(self.port, path, method)

    def scrape(self) -> Samples:
        status, text = self.request("/metrics")
        assert status == 200
        return Samples(text)

    def livez(self) -> bool:
        try:
            return self.request("/livez")[0] == 200
        except OSError:
            return False

    def workers(self) -> set[int]:
        return children(self.process.pid)

    def await_workers(self, number: int) -> None:
        wait_until(lambda: self.scrape().sum_of("todo_workers") == number)

    def kill_workers(self) -> None:
        """Kill all workers at once, and wait for the new ones."""
        before = self.workers()
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: len(self.workers() - before) == WORKERS)
        wait_until(self.livez)
        self.await_workers(WORKERS)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)


def children(parent: int) -> set[int]:
    """Return the running child processes of a process."""
    listing = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--ppid", str(parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (line.split() for line in listing.stdout.splitlines())
    return {int(pid) for pid, state in lines if not state.startswith("Z")}


def metrics_folders(master: int) -> list[Path]:
    """Return the folders of a master in which its workers write their metrics."""
    parent = worker_numbers.MEMORY if worker_numbers.MEMORY.is_dir() else Path("/tmp")
    return list(parent.glob(f"{worker_numbers.PREFIX}{master}-*"))


@pytest.fixture
def serving(database_url, tmp_path):
    """Run gunicorn and wait until both workers have started."""

    @contextmanager
    def serve(**environ: str):
        server = Gunicorn(tmp_path, DATABASE_URL=database_url, **environ)
        try:
            wait_until(server.livez)
            server.await_workers(WORKERS)
            yield server
        finally:
            server.end()

    return serve


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def client_with_metrics(make_app):
    return make_app(METRICS="true").test_client()


def test_metrics_are_closed_by_default(client):
    assert client.get("/metrics").status_code == 404


def test_metrics_are_closed_by_default_with_authentication(make_app):
    client = make_app(AUTH_MODE="jwt", JWT_SECRET="s3cret-" * 5).test_client()

    assert client.get("/metrics").status_code == 401


def test_open_metrics_need_no_token(make_app):
    client = make_app(METRICS="true", AUTH_MODE="jwt", JWT_SECRET="s3cret-" * 5).test_client()

    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics/").status_code == 401


def test_metrics_are_in_the_format_of_prometheus(client_with_metrics):
    response = client_with_metrics.get("/metrics")

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert Samples(response.text).sum_of("todo_workers") == 1


def test_every_metric_is_documented(metrics):
    page = (ROOT / "docs" / "metrics.md").read_text()
    KeySetMetrics(metrics)

    collected = {
        family.name + "_total" * (family.type == "counter") for family in metrics.registry.collect()
    }
    documented = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}

    assert_same_lines(
        sorted(documented),
        sorted(collected),
        "docs/metrics.md has a row for each metric of todo_api/metrics.py, and for no other.",
    )


def test_no_metric_shows_a_version(client_with_metrics):
    assert "version" not in client_with_metrics.get("/metrics").text
    assert "python" not in client_with_metrics.get("/metrics").text


def test_one_process_has_the_same_series_as_several(client_with_metrics):
    """The library's files for several processes contain no `_created` series."""
    names = {name for name, *_ in Samples(client_with_metrics.get("/metrics").text)}

    assert "todo_database_retries_total" in names
    assert not [name for name in names if name.endswith("_created")]


def test_request_is_counted_and_timed_by_route_method_and_status(client_with_metrics, user_id):
    labels = {"route": "/api/{user_id}/tasks", "method": "POST", "status": "422"}
    before = Samples(client_with_metrics.get("/metrics").text)

    client_with_metrics.post(f"/api/{user_id}/tasks", json={})

    after = Samples(client_with_metrics.get("/metrics").text)
    count, number, seconds = (
        after.sum_of(f"todo_http_{name}", **labels) - before.sum_of(f"todo_http_{name}", **labels)
        for name in (
            "requests_total",
            "request_duration_seconds_count",
            "request_duration_seconds_sum",
        )
    )
    assert count == number == 1
    assert 0 < seconds < TIMEOUT


def test_text_from_clients_does_not_become_a_label(client_with_metrics, user_id):
    before = Samples(client_with_metrics.get("/metrics").text)

    for _ in range(50):
        random_name = uuid.uuid4().hex
        client_with_metrics.open(f"/{random_name}/{random_name}", method=f"X{random_name}"[:20])
        client_with_metrics.open(f"/api/{random_name}", method=random_name[:10])
        client_with_metrics.get(f"/api/{uuid.uuid4()}/tasks/{uuid.uuid4()}")
        client_with_metrics.get(f"/api/{random_name}/tasks")

    text = client_with_metrics.get("/metrics").text
    assert random_name not in text
    assert user_id not in text
    new = {dict(labels)["method"] for _, *labels in Samples(text).keys() - before.keys()}
    assert new <= {"GET", "other"}
    added = Samples(text).sum_of("todo_http_requests_total", method="other") - before.sum_of(
        "todo_http_requests_total", method="other"
    )
    assert added == 100


def test_pool_is_watched_until_it_is_closed(database_url, metrics):
    def value(name: str) -> float:
        return metrics.registry.get_sample_value(f"todo_database_{name}")

    with ConnectionPool(database_url, min_size=2, max_size=7) as pool:
        pool.wait()
        metrics.watch_pool(pool, interval=0.01)
        with pool.connection():
            wait_until(
                lambda: (
                    [
                        value("pool_connections"),
                        value("pool_idle_connections"),
                        value("pool_max_connections"),
                        value("pool_waiting_requests"),
                    ]
                    == [2, 1, 7, 0]
                )
            )


def counter_value(app: App, name: str, **labels: str) -> float:
    """Return the value of a counter of the application."""
    return app.services.metrics.registry.get_sample_value(f"todo_{name}_total", labels)


def test_replayed_response_is_counted(make_app, tasks_url):
    app = make_app()
    for _ in range(3):
        app.test_client().post(
            tasks_url, json={"title": "Buy oats"}, headers={"Idempotency-Key": "once"}
        )

    assert counter_value(app, "idempotency_replays") == 2


def test_lost_connection_and_retry_are_counted(make_app, tasks_url):
    app = make_app(WEB_THREADS="1")
    client = app.test_client()
    client.get(tasks_url)
    with app.services.pool._pool.connection() as connection:
        descriptor = os.dup(connection.fileno())
    with socket.socket(fileno=descriptor) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)

    assert client.get(tasks_url).status_code == 200

    assert counter_value(app, "database_retries", reason="connection_lost") == 1
    assert counter_value(app, "database_connections_lost") == 1
    assert counter_value(app, "database_connections_opened") >= 2
    assert counter_value(app, "database_unknown_outcomes") == 0


def test_request_refused_during_an_outage_is_counted(make_app, tasks_url):
    app = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", REQUEST_TIMEOUT="0.2")
    client = app.test_client()

    wait_until(
        lambda: (
            client.get(tasks_url).status_code == 503
            and counter_value(app, "database_refused_requests", reason="outage")
        )
    )

    assert counter_value(app, "database_connect_failures") >= 1


def test_request_without_a_free_slot_is_counted(make_app, task, database_url):
    app = make_app(WEB_THREADS="1", REQUEST_TIMEOUT="30")

    with ThreadPoolExecutor(1) as thread, psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
        thread.submit(app.test_client().patch, task.url, json={"title": "Buy oats"})
        wait_until(lambda: not app.services.pool.admission.free_slots)
        refused = app.test_client().get(task.url)

    assert refused.status_code == 503
    assert counter_value(app, "database_refused_requests", reason="admission") == 1


def test_key_set_has_metrics_of_age_and_failures(metrics):
    key_set = KeySetMetrics(metrics)
    started_at = time.time()

    key_set.report_fetch(3)
    key_set.report_fetch(None)

    value = metrics.registry.get_sample_value
    assert value("todo_jwks_keys") == 3
    assert value("todo_jwks_fetched_timestamp_seconds") >= started_at
    assert value("todo_jwks_fetch_failures_total") == 1


def test_applications_of_one_process_have_separate_counts(make_app):
    used, other = make_app(METRICS="true"), make_app(METRICS="true")

    used.test_client().get("/livez")

    labels = {"route": "/livez", "method": "GET", "status": "200"}
    assert counter_value(used, "http_requests", **labels) == 1
    assert counter_value(other, "http_requests", **labels) is None


@pytest.mark.slow
def test_counts_of_all_workers_add_up_exactly(serving):
    def send_request(_: int) -> int:
        return server.request("/nowhere")[0]

    with serving() as server, ThreadPoolExecutor(8) as clients:
        (folder,) = metrics_folders(server.process.pid)
        sent = 0
        while not all(b"unmatched" in file.read_bytes() for file in folder.glob("counter_*")):
            assert sent < 10_000, "one worker got all requests"
            assert set(clients.map(send_request, range(100))) == {404}
            sent += 100

        # Each worker reports the total of both.
        counts = [
            server.scrape().sum_of("todo_http_requests_total", route="unmatched", status="404")
            for _ in range(10)
        ]

    assert counts == [sent] * 10


class KeySetOfTwo(BaseHTTPRequestHandler):
    BODY = json.dumps(
        {"keys": [OKPKey.generate_key("Ed25519").as_dict(private=False) for _ in range(2)]}
    ).encode()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.BODY)))
        self.end_headers()
        self.wfile.write(self.BODY)

    def log_message(self, *_):
        """Write no log."""


@pytest.fixture
def issuer():
    with ThreadingHTTPServer(("127.0.0.1", 0), KeySetOfTwo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/jwks"
        server.shutdown()


def issuer_settings(url: str) -> dict[str, str]:
    names = {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "todo"}
    return names | {"AUTH_MODE": "jwt", "JWT_JWKS_URL": url}


@pytest.mark.slow
def test_scrape_shows_the_key_set_of_the_workers(serving, issuer):
    started_at = time.time()

    with serving(**issuer_settings(issuer)) as server:
        wait_until(lambda: server.scrape().sum_of("todo_jwks_keys") == 2)

        samples = server.scrape()
        assert started_at <= samples.sum_of("todo_jwks_fetched_timestamp_seconds") <= time.time()
        assert samples.sum_of("todo_jwks_fetch_failures_total") == 0


@pytest.mark.slow
def test_scrape_shows_failed_fetches_of_the_key_set(serving):
    with serving(**issuer_settings("http://127.0.0.1:1/jwks")) as server:
        wait_until(lambda: server.scrape().sum_of("todo_jwks_fetch_failures_total") >= WORKERS)

        assert server.scrape()["todo_jwks_fetched_timestamp_seconds",] == 0


@pytest.mark.slow
def test_killed_worker_leaves_its_counts_but_not_its_gauges(serving):
    with serving() as server:
        for _ in range(20):
            server.request("/nowhere")
        (folder,) = metrics_folders(server.process.pid)
        files = set(folder.iterdir())
        connections = WORKERS * CONNECTIONS_PER_WORKER
        wait_until(
            lambda: server.scrape().sum_of("todo_database_pool_max_connections") == connections
        )

        for _ in range(3):
            server.kill_workers()

        wait_until(
            lambda: server.scrape().sum_of("todo_database_pool_max_connections") == connections
        )
        assert server.scrape().sum_of("todo_http_requests_total", route="unmatched") == 20
        # One worker may have served all requests. Its files remain, and a third worker has none.
        assert {file.stem.rpartition("_")[2] for file in folder.iterdir()} == {
            str(number) for number in range(WORKERS)
        }
        assert files <= set(folder.iterdir())


@pytest.mark.slow
def test_removed_worker_leaves_no_gauges(serving):
    with serving() as server:
        server.process.send_signal(signal.SIGTTIN)
        server.await_workers(WORKERS + 1)

        server.process.send_signal(signal.SIGTTOU)

        server.await_workers(WORKERS)


@pytest.mark.slow
def test_reload_keeps_the_counts(serving):
    with serving() as server:
        before = server.workers()
        for _ in range(20):
            server.request("/nowhere")

        server.process.send_signal(signal.SIGHUP)

        wait_until(lambda: len(server.workers()) == WORKERS and not server.workers() & before)
        wait_until(server.livez)
        server.await_workers(WORKERS)
        assert server.scrape().sum_of("todo_http_requests_total", route="unmatched") == 20
        assert len(metrics_folders(server.process.pid)) == 1


@pytest.mark.slow
def test_upgraded_server_has_its_own_counts_and_metrics_folder(serving):
    with serving() as old:
        old.request("/nowhere")
        before = old.workers()
        old.process.send_signal(signal.SIGUSR2)
        (new,) = wait_until(lambda: [pid for pid in old.workers() - before if children(pid)])
        try:
            wait_until(lambda: len(children(new)) == WORKERS)
            assert len(metrics_folders(old.process.pid)) == len(metrics_folders(new)) == 1
            old.end()

            assert metrics_folders(old.process.pid) == []
            wait_until(lambda: old.livez() and old.scrape().sum_of("todo_workers") == WORKERS)
            assert old.scrape().sum_of("todo_http_requests_total", route="unmatched") == 0
        finally:
            os.kill(new, signal.SIGTERM)
            wait_until(lambda: not metrics_folders(new))


@pytest.mark.slow
def test_empty_metrics_file_is_skipped(serving):
    with serving() as server:
        (folder,) = metrics_folders(server.process.pid)

        (folder / "counter_9.db").touch()

        assert server.scrape().sum_of("todo_workers") == WORKERS


@pytest.mark.slow
def test_folder_of_a_killed_server_is_removed_by_the_next_one(serving):
    with serving() as server:
        workers = server.workers()
        (folder,) = metrics_folders(server.process.pid)
        for process in (server.process.pid, *workers):
            os.kill(process, signal.SIGKILL)
        server.process.wait(TIMEOUT)
    assert folder.exists()
    os.utime(folder, (0, 0))

    with serving() as server:
        assert not folder.exists()
        # An old folder remains while a process uses it.
        (folder,) = metrics_folders(server.process.pid)
        os.utime(folder, (0, 0))
        worker_numbers.remove_orphans(folder.parent)
        assert folder.exists()
