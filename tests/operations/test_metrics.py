"""/metrics: closed unless asked for, of few labels, and one count of all of gunicorn's workers."""

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
from todo_api.server import slots

if TYPE_CHECKING:
    from todo_api.app import App

GUNICORN = Path(sys.executable).parent / "gunicorn"
LONG = 60  # seconds, for what takes a moment on a machine that is not busy
WORKERS = 2
SLOTS = 3  # connections of each: one fewer than its threads


class Samples(dict):
    """What a scrape says, by name and sorted labels; what it does not say is 0."""

    def __init__(self, text: str) -> None:
        super().__init__(
            ((sample.name, *sorted(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        )

    def of(self, name: str, **labels: str) -> float:
        """The sum of all that has the name, and these labels among its own."""
        return sum(
            value
            for (other, *pairs), value in self.items()
            if other == name and labels.items() <= dict(pairs).items()
        )


def eventually(holds):
    """Wait until it holds, and return what it is then."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.05)
    return pytest.fail("it never came true")


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """The answer to a request on a connection of its own, so that any worker may take it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Gunicorn:
    def __init__(self, folder: Path, **environ: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        settings = {"AUTH_MODE": "none", "METRICS": "true", "WEB_CONCURRENCY": str(WORKERS)}
        self.process = subprocess.Popen(
            # Not `-m gunicorn`, whose folder an upgrade would put before the standard library.
            [GUNICORN, "--config", ROOT / "gunicorn.conf.py"],
            # Without a .env of ours.
            cwd=folder,
            env=kept | settings | {"PORT": str(self.port), "PYTHONPATH": str(ROOT)} | environ,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        return ask(self.port, path, method)

    def scrape(self) -> Samples:
        status, text = self.ask("/metrics")
        assert status == 200
        return Samples(text)

    def livez(self) -> bool:
        try:
            return self.ask("/livez")[0] == 200
        except OSError:
            return False

    def workers(self) -> set[int]:
        return children(self.process.pid)

    def await_workers(self, number: int) -> None:
        eventually(lambda: self.scrape().of("todo_workers") == number)

    def kill_workers(self) -> None:
        """Kill them all at once, and wait for their successors."""
        before = self.workers()
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(self.workers() - before) == WORKERS)
        eventually(self.livez)
        self.await_workers(WORKERS)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(LONG)


def children(parent: int) -> set[int]:
    """The processes that a process has started and that still run."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--ppid", str(parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (line.split() for line in found.stdout.splitlines())
    return {int(pid) for pid, state in lines if not state.startswith("Z")}


def folders(master: int) -> list[Path]:
    """Where the workers of a master write their numbers."""
    parent = slots.MEMORY if slots.MEMORY.is_dir() else Path("/tmp")
    return list(parent.glob(f"{slots.PREFIX}{master}-*"))


@pytest.fixture
def serving(database_url, tmp_path):
    """Run gunicorn with two workers that are there."""

    @contextmanager
    def serve(**environ: str):
        server = Gunicorn(tmp_path, DATABASE_URL=database_url, **environ)
        try:
            eventually(server.livez)
            server.await_workers(WORKERS)
            yield server
        finally:
            server.end()

    return serve


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def measured(make_app):
    return make_app(METRICS="true").test_client()


def test_metrics_are_closed_by_default(client):
    assert client.get("/metrics").status_code == 404


def test_metrics_are_closed_by_default_where_tokens_are_asked_for(make_app):
    closed = make_app(AUTH_MODE="jwt", JWT_SECRET="s3cret-" * 5).test_client()

    assert closed.get("/metrics").status_code == 401


def test_metrics_need_no_token_where_they_are_open(make_app):
    opened = make_app(METRICS="true", AUTH_MODE="jwt", JWT_SECRET="s3cret-" * 5).test_client()

    assert opened.get("/metrics").status_code == 200
    assert opened.get("/metrics/").status_code == 401


def test_metrics_are_in_the_format_of_prometheus(measured):
    answer = measured.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert Samples(answer.text).of("todo_workers") == 1


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


def test_no_metric_tells_a_version(measured):
    assert "version" not in measured.get("/metrics").text
    assert "python" not in measured.get("/metrics").text


def test_one_process_has_the_series_that_several_have(measured):
    """The library's files for several processes hold no times of creation."""
    names = {name for name, *_ in Samples(measured.get("/metrics").text)}

    assert "todo_database_retries_total" in names
    assert not [name for name in names if name.endswith("_created")]


def test_a_request_is_counted_and_timed_by_route_method_and_status(measured, user_id):
    labels = {"route": "/api/{user_id}/tasks", "method": "POST", "status": "422"}
    before = Samples(measured.get("/metrics").text)

    measured.post(f"/api/{user_id}/tasks", json={})

    after = Samples(measured.get("/metrics").text)
    count, number, seconds = (
        after.of(f"todo_http_{name}", **labels) - before.of(f"todo_http_{name}", **labels)
        for name in (
            "requests_total",
            "request_duration_seconds_count",
            "request_duration_seconds_sum",
        )
    )
    assert count == number == 1
    assert 0 < seconds < LONG


def test_what_clients_make_up_is_no_label(measured, user_id):
    before = Samples(measured.get("/metrics").text)

    for _ in range(50):
        made_up = uuid.uuid4().hex
        measured.open(f"/{made_up}/{made_up}", method=f"X{made_up}"[:20])
        measured.open(f"/api/{made_up}", method=made_up[:10])
        measured.get(f"/api/{uuid.uuid4()}/tasks/{uuid.uuid4()}")
        measured.get(f"/api/{made_up}/tasks")

    text = measured.get("/metrics").text
    assert made_up not in text
    assert user_id not in text
    new = {dict(labels)["method"] for _, *labels in Samples(text).keys() - before.keys()}
    assert new <= {"GET", "other"}
    added = Samples(text).of("todo_http_requests_total", method="other") - before.of(
        "todo_http_requests_total", method="other"
    )
    assert added == 100


def test_a_pool_is_watched_until_it_is_closed(database_url, metrics):
    def value(name: str) -> float:
        return metrics.registry.get_sample_value(f"todo_database_{name}")

    with ConnectionPool(database_url, min_size=2, max_size=7) as pool:
        pool.wait()
        metrics.watch_pool(pool, interval=0.01)
        with pool.connection():
            eventually(
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


def counted(app: App, name: str, **labels: str) -> float:
    """How often the application has counted something."""
    return app.services.metrics.registry.get_sample_value(f"todo_{name}_total", labels)


def test_an_answer_that_is_given_again_is_counted(make_app, tasks_url):
    app = make_app()
    for _ in range(3):
        app.test_client().post(
            tasks_url, json={"title": "Buy oats"}, headers={"Idempotency-Key": "once"}
        )

    assert counted(app, "idempotency_replays") == 2


def test_a_connection_that_breaks_and_what_is_run_again_are_counted(make_app, tasks_url):
    app = make_app(WEB_THREADS="1")
    client = app.test_client()
    client.get(tasks_url)
    with app.services.pool._pool.connection() as only:
        descriptor = os.dup(only.fileno())
    with socket.socket(fileno=descriptor) as held:
        held.shutdown(socket.SHUT_RDWR)

    assert client.get(tasks_url).status_code == 200

    assert counted(app, "database_retries", reason="connection_lost") == 1
    assert counted(app, "database_connections_lost") == 1
    assert counted(app, "database_connections_opened") >= 2
    assert counted(app, "database_unknown_outcomes") == 0


def test_who_is_refused_during_an_outage_is_counted(make_app, tasks_url):
    app = make_app(DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing", REQUEST_TIMEOUT="0.2")
    client = app.test_client()

    eventually(
        lambda: (
            client.get(tasks_url).status_code == 503
            and counted(app, "database_refused_requests", reason="outage")
        )
    )

    assert counted(app, "database_connect_failures") >= 1


def test_request_that_finds_no_free_slot_is_counted(make_app, task, database_url):
    app = make_app(WEB_THREADS="1", REQUEST_TIMEOUT="30")

    with ThreadPoolExecutor(1) as thread, psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
        thread.submit(app.test_client().patch, task.url, json={"title": "Buy oats"})
        eventually(lambda: not app.services.pool.admission.free_slots)
        refused = app.test_client().get(task.url)

    assert refused.status_code == 503
    assert counted(app, "database_refused_requests", reason="admission") == 1


def test_a_key_set_tells_its_age_and_its_failures(metrics):
    key_set = KeySetMetrics(metrics)
    began = time.time()

    key_set.report_fetch(3)
    key_set.report_fetch(None)

    value = metrics.registry.get_sample_value
    assert value("todo_jwks_keys") == 3
    assert value("todo_jwks_fetched_timestamp_seconds") >= began
    assert value("todo_jwks_fetch_failures_total") == 1


def test_applications_of_one_process_count_for_themselves(make_app):
    asked, other = make_app(METRICS="true"), make_app(METRICS="true")

    asked.test_client().get("/livez")

    labels = {"route": "/livez", "method": "GET", "status": "200"}
    assert counted(asked, "http_requests", **labels) == 1
    assert counted(other, "http_requests", **labels) is None


@pytest.mark.slow
def test_counts_of_all_workers_add_up_exactly(serving):
    def answered(_: int) -> int:
        return server.ask("/nowhere")[0]

    with serving() as server, ThreadPoolExecutor(8) as clients:
        (folder,) = folders(server.process.pid)
        asked = 0
        while not all(b"unmatched" in file.read_bytes() for file in folder.glob("counter_*")):
            assert asked < 10_000, "one worker answers all"
            assert set(clients.map(answered, range(100))) == {404}
            asked += 100

        # Whichever worker answers.
        counts = [
            server.scrape().of("todo_http_requests_total", route="unmatched", status="404")
            for _ in range(10)
        ]

    assert counts == [asked] * 10


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
        """Nothing of it is news."""


@pytest.fixture
def issuer():
    with ThreadingHTTPServer(("127.0.0.1", 0), KeySetOfTwo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/jwks"
        server.shutdown()


def trusting(url: str) -> dict[str, str]:
    names = {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "todo"}
    return names | {"AUTH_MODE": "jwt", "JWT_JWKS_URL": url}


@pytest.mark.slow
def test_the_key_set_is_told_as_the_workers_have_it(serving, issuer):
    began = time.time()

    with serving(**trusting(issuer)) as server:
        eventually(lambda: server.scrape().of("todo_jwks_keys") == 2)

        told = server.scrape()
        assert began <= told.of("todo_jwks_fetched_timestamp_seconds") <= time.time()
        assert told.of("todo_jwks_fetch_failures_total") == 0


@pytest.mark.slow
def test_a_key_set_that_cannot_be_had_is_told(serving):
    with serving(**trusting("http://127.0.0.1:1/jwks")) as server:
        eventually(lambda: server.scrape().of("todo_jwks_fetch_failures_total") >= WORKERS)

        assert server.scrape()["todo_jwks_fetched_timestamp_seconds",] == 0


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_gauges_along_and_leaves_its_counts(serving):
    with serving() as server:
        for _ in range(20):
            server.ask("/nowhere")
        (folder,) = folders(server.process.pid)
        files = set(folder.iterdir())
        connections = WORKERS * SLOTS
        eventually(lambda: server.scrape().of("todo_database_pool_max_connections") == connections)

        for _ in range(3):
            server.kill_workers()

        eventually(lambda: server.scrape().of("todo_database_pool_max_connections") == connections)
        assert server.scrape().of("todo_http_requests_total", route="unmatched") == 20
        # One worker may have answered all of them: what it counted is there, and no third slot.
        assert {file.stem.rpartition("_")[2] for file in folder.iterdir()} == {
            str(slot) for slot in range(WORKERS)
        }
        assert files <= set(folder.iterdir())


@pytest.mark.slow
def test_a_worker_that_has_no_successor_takes_its_gauges_along(serving):
    with serving() as server:
        server.process.send_signal(signal.SIGTTIN)
        server.await_workers(WORKERS + 1)

        server.process.send_signal(signal.SIGTTOU)

        server.await_workers(WORKERS)


@pytest.mark.slow
def test_a_reload_keeps_the_counts(serving):
    with serving() as server:
        before = server.workers()
        for _ in range(20):
            server.ask("/nowhere")

        server.process.send_signal(signal.SIGHUP)

        eventually(lambda: len(server.workers()) == WORKERS and not server.workers() & before)
        eventually(server.livez)
        server.await_workers(WORKERS)
        assert server.scrape().of("todo_http_requests_total", route="unmatched") == 20
        assert len(folders(server.process.pid)) == 1


@pytest.mark.slow
def test_an_upgrade_counts_for_itself_and_leaves_the_other_master_alone(serving):
    with serving() as old:
        old.ask("/nowhere")
        before = old.workers()
        old.process.send_signal(signal.SIGUSR2)
        (new,) = eventually(lambda: [pid for pid in old.workers() - before if children(pid)])
        try:
            eventually(lambda: len(children(new)) == WORKERS)
            assert len(folders(old.process.pid)) == len(folders(new)) == 1
            old.end()

            assert folders(old.process.pid) == []
            eventually(lambda: old.livez() and old.scrape().of("todo_workers") == WORKERS)
            assert old.scrape().of("todo_http_requests_total", route="unmatched") == 0
        finally:
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not folders(new))


@pytest.mark.slow
def test_a_file_that_a_worker_has_just_begun_is_passed_over(serving):
    with serving() as server:
        (folder,) = folders(server.process.pid)

        (folder / "counter_9.db").touch()

        assert server.scrape().of("todo_workers") == WORKERS


@pytest.mark.slow
def test_a_server_that_was_killed_leaves_a_folder_that_the_next_one_removes(serving):
    with serving() as server:
        workers = server.workers()
        (folder,) = folders(server.process.pid)
        for process in (server.process.pid, *workers):
            os.kill(process, signal.SIGKILL)
        server.process.wait(LONG)
    assert folder.exists()
    os.utime(folder, (0, 0))

    with serving() as server:
        assert not folder.exists()
        # A folder that is in use stays, however old.
        (folder,) = folders(server.process.pid)
        os.utime(folder, (0, 0))
        slots.remove_orphans(folder.parent)
        assert folder.exists()
