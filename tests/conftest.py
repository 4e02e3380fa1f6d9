"""One PostgreSQL for a run, one migrated database per pytest worker, one user per test."""

from __future__ import annotations

import io
import os
import shutil
import time
import uuid
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from psycopg import sql

from fault_injection.pgbouncer import PGBOUNCER, Pooler, pgbouncer
from tests.support.api import Task
from tests.support.make_run import database_folder_of, link_source
from tests.support.postgresql import NOT_DURABLE, PARTITION_TABLES, at_database, execute, migrate
from todo_api.app import create_app, utc_now
from todo_api.commands.embedded import temporary_cluster
from todo_api.db.database import Database
from todo_api.db.pool import Pool
from todo_api.logs import configure_logging
from todo_api.metrics import Metrics
from todo_api.startup import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from todo_api.auth.jwks import FetchTimes
    from todo_api.settings import Settings

# All Hypothesis examples of a test may share its client and user. They have no deadline, because
# the duration of statements varies.
for name, examples in (("todo", 60), ("full", 300)):
    settings.register_profile(
        name,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


# A test runs with 1/50 of its full count (FEW), and with 1/10 (MANY), which repeats these steps.
FEW = pytest.param(50, id="few")
MANY = pytest.param(10, id="many", marks=pytest.mark.slow)
ALL = pytest.param(1, id="all")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run all tests with their full counts")
    parser.addoption(
        "--without-few",
        action="store_true",
        help="leave out the tests that the slow tests repeat with higher counts",
    )
    parser.addoption(
        "--pooler", action="store_true", help="connect to the database through PgBouncer"
    )
    parser.addoption("--partitioned", action="store_true", help="partition the tables")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the counts, and how the applications of a test connect to the database.

    Applications connect directly by default, and through PgBouncer with the option --pooler. A test
    marked `pooled` runs in both modes, and a test marked `direct` always connects directly. A test
    marked `partitioned` runs with plain tables and with partitioned ones.
    """
    find_mark = metafunc.definition.get_closest_marker
    if "count" in metafunc.fixturenames:
        is_slow = find_mark("slow") or metafunc.config.option.without_few
        counts = [MANY] if is_slow else [FEW, MANY]
        counts = [ALL] if metafunc.config.option.full else counts
        metafunc.parametrize("count", counts, indirect=True)
    if "database_url" in metafunc.fixturenames and find_mark("partitioned"):
        metafunc.parametrize(
            "database_url", ["whole", "partitioned"], indirect=True, scope="session"
        )
    if "pooler" not in metafunc.fixturenames:
        return
    if find_mark("direct"):
        modes = ["direct"]
    elif metafunc.config.option.pooler:
        modes = ["pooled"]
    elif find_mark("pooled"):
        modes = ["direct", "pooled"]
    else:
        return
    metafunc.parametrize("pooler", modes, indirect=True, scope="session")


SERVER_URL = pytest.StashKey[str]()
CLEANUP = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start PostgreSQL in the main process, and pass its URL to the pytest workers."""
    settings.load_profile("full" if config.option.full else "todo")
    if hasattr(config, "workerinput"):
        config.stash[SERVER_URL] = config.workerinput["server_url"]
    elif url := os.environ.get("TEST_DATABASE_URL"):
        config.stash[SERVER_URL] = url
    elif not config.option.collectonly:
        config.stash[CLEANUP] = ExitStack()
        cluster = config.stash[CLEANUP].enter_context(temporary_cluster(options=NOT_DURABLE))
        config.stash[SERVER_URL] = cluster.url()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["server_url"] = node.config.stash[SERVER_URL]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash.get(CLEANUP, ExitStack()).close()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> str:
    """The URL of the PostgreSQL server, with a superuser as login."""
    return pytestconfig.stash[SERVER_URL]


@pytest.fixture(scope="session")
def new_login(server: str, worker_id: str):
    """Return a function that creates a login whose name is its password; dropped at the end."""
    names = []

    def make(purpose: str, attributes: str = "") -> str:
        name = f"todo_{purpose}_{worker_id}_{len(names)}"
        names.append(name)
        execute(server, f"DROP ROLE IF EXISTS {name}")
        execute(server, f"CREATE ROLE {name} LOGIN PASSWORD '{name}' {attributes}")
        return name

    yield make
    for name in names:
        execute(server, f"DROP ROLE {name}")


# This fixture requests new_login, so that databases are dropped before the roles that own them.
@pytest.fixture(scope="session")
def new_database(server: str, worker_id: str, new_login):  # noqa: ARG001
    """Return a function that creates an empty database for an owner; dropped at the end."""
    names = []

    def make(purpose: str, owner: str = "DEFAULT") -> str:
        name = f"todo_{purpose}_{worker_id}_{len(names)}"
        names.append(name)
        execute(server, sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        execute(
            server,
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.SQL(owner)),
        )
        return at_database(server, name)

    yield make
    for name in names:
        execute(
            server, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture(scope="session")
def database_url(new_database, request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database. Tests of a pytest worker share it, with one user per test."""
    url = new_database("shared")
    migrate(url)
    if request.config.option.partitioned or getattr(request, "param", "whole") == "partitioned":
        execute(url, PARTITION_TABLES)
    return url


@pytest.fixture(scope="session")
def pooler(server: str, request: pytest.FixtureRequest):
    """A PgBouncer with three server connections, or None if applications connect directly."""
    if getattr(request, "param", "direct") == "direct":
        yield None
    elif PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    else:
        with pgbouncer(server, pool_size=3) as running:
            yield running


@pytest.fixture(scope="session")
def make_settings(database_url: str, pooler: Pooler | None):
    """Return a function that makes settings; their database URL is direct or PgBouncer's."""

    def make(**changes: str) -> Settings:
        environ = {"DATABASE_URL": database_url, "AUTH_MODE": "none"} | changes
        if pooler:
            environ["DATABASE_URL"] = pooler.pooled_url(environ["DATABASE_URL"])
            environ.setdefault("DATABASE_PREPARE", "false")
        return load_settings(environ)

    return make


@pytest.fixture(scope="session")
def app(make_settings, log_stream: io.StringIO) -> Flask:  # noqa: ARG001  configures logging
    # No test sends 16 requests at once, so the admission limiter refuses none.
    application = create_app(make_settings(WEB_THREADS="16"))
    yield application
    application.services.pool.close()


@pytest.fixture(scope="session")
def shared_app(make_settings, log_stream: io.StringIO):  # noqa: ARG001  configures logging
    """Return a function that returns the application with other settings; tests share it.

    A test that changes the state of the application, such as its hooks, its counters or the keys of
    an issuer, needs an application of its own (make_app), which takes 0.1 s.
    """
    with ExitStack() as stack:

        @cache
        def make(now: Callable[[], datetime] = utc_now, **changes: str) -> Flask:
            application = create_app(make_settings(**changes), now=now)
            stack.callback(application.services.pool.close)
            return application

        yield make


@pytest.fixture
def make_app(make_settings, log_stream: io.StringIO):  # noqa: ARG001  configures logging
    """Return a function that makes an application with other settings; closed at the end.

    `now` is the clock of the application, such as a Clock of tests/support/clock.py.
    """
    with ExitStack() as stack:

        def make(
            fetch_times: FetchTimes | None = None,
            now: Callable[[], datetime] = utc_now,
            **changes: str,
        ) -> Flask:
            application = create_app(make_settings(**changes), fetch_times, now)
            stack.callback(application.services.pool.close)
            return application

        yield make


@pytest.fixture
def open_database(make_settings):
    """Return a function that opens the database as the application does; closed at the end."""
    with ExitStack() as stack:

        def make(**changes: str) -> Database:
            pool = Pool(make_settings(**changes), Metrics())
            stack.callback(pool.close)
            return Database(pool, deadline=time.monotonic() + 60)

        yield make


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def checkout(tmp_path: Path):
    """Return a function that prepares a folder for `make run`; its data are removed at the end."""
    folders = []

    def make(path: Path = tmp_path) -> Path:
        link_source(path)
        folders.append(path)
        return path

    yield make
    for path in folders:
        shutil.rmtree(database_folder_of(path).parent, ignore_errors=True)


@pytest.fixture
def count(request: pytest.FixtureRequest):
    """Return a function that reduces the count of a test's rounds.

    A test runs with a fiftieth of its count and, marked `slow`, with a tenth; with --full, only
    with the whole count. `least` is the minimum for a meaningful test.
    """
    return lambda full, least=1: max(least, full // request.param)


@pytest.fixture
def connection(database_url: str):
    """A superuser's connection, for operations that the API does not have."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def user_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def tasks_url(user_id: str) -> str:
    return f"/api/{user_id}/tasks"


@pytest.fixture
def make_task(client: FlaskClient, tasks_url: str):
    def make(**values: Any) -> Task:
        response = client.post(tasks_url, json={"title": "Buy oat milk"} | values)
        assert response.status_code == 201, response.text
        return Task(response.json)

    return make


@pytest.fixture
def task(make_task) -> Task:
    return make_task(description="Two litres")


@pytest.fixture(scope="session")
def log_stream() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("info", stream)
    return stream


@pytest.fixture
def log_lines(log_stream: io.StringIO):
    """Return a function that reads the log lines of the test so far, parsed as JSON."""
    start = log_stream.tell()

    def read() -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in log_stream.getvalue()[start:].splitlines()]

    return read
