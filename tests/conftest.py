"""One PostgreSQL for the run, one migrated database for each worker, one user for each test."""

from __future__ import annotations

import io
import os
import shutil
import time
import uuid
from contextlib import ExitStack
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
from tests.support.make_run import data_of, link_source
from tests.support.postgresql import DIVIDE, VOLATILE, at_database, execute, migrate
from todo_api.app import create_app
from todo_api.commands.embedded import temporary_cluster
from todo_api.db.database import Database
from todo_api.db.pool import Pool
from todo_api.logs import configure_logging
from todo_api.metrics import Metrics
from todo_api.startup import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from todo_api.auth.jwks import Pace
    from todo_api.settings import Settings

# A client and a user serve many examples of a test as well as one; a database has no deadline.
settings.register_profile(
    "todo",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("todo")


# By what the fixture `count` divides.
FEW = pytest.param(50, id="few")
MANY = pytest.param(10, id="many", marks=pytest.mark.slow)
ALL = pytest.param(1, id="all")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the counts that take long, in full")
    parser.addoption("--pooler", action="store_true", help="reach the database through PgBouncer")
    parser.addoption("--divided", action="store_true", help="divide the tables into partitions")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the counts, and the applications' way to the database.

    That way is straight, unless a mark or --pooler says else. What is marked `pooled` goes both
    ways; what is marked `direct` never goes through PgBouncer. What is marked `divided` has its
    tables whole and in partitions.
    """
    marked = metafunc.definition.get_closest_marker
    if "count" in metafunc.fixturenames:
        full = metafunc.config.option.full
        metafunc.parametrize("count", [ALL] if full else [FEW, MANY], indirect=True)
    if "database_url" in metafunc.fixturenames and marked("divided"):
        metafunc.parametrize("database_url", ["whole", "divided"], indirect=True, scope="session")
    if "pooler" not in metafunc.fixturenames:
        return
    if marked("direct"):
        ways = ["direct"]
    elif metafunc.config.option.pooler:
        ways = ["pooled"]
    elif marked("pooled"):
        ways = ["direct", "pooled"]
    else:
        return
    metafunc.parametrize("pooler", ways, indirect=True, scope="session")


SERVER = pytest.StashKey[str]()
UNTIL_THE_END = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the server in the process that the workers belong to, and tell them where it is."""
    if hasattr(config, "workerinput"):
        config.stash[SERVER] = config.workerinput["server"]
    elif given := os.environ.get("TEST_DATABASE_URL"):
        config.stash[SERVER] = given
    elif not config.option.collectonly:
        config.stash[UNTIL_THE_END] = ExitStack()
        cluster = config.stash[UNTIL_THE_END].enter_context(temporary_cluster(options=VOLATILE))
        config.stash[SERVER] = cluster.url()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["server"] = node.config.stash[SERVER]


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash.get(UNTIL_THE_END, ExitStack()).close()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> str:
    """The URL of the server, as a superuser who may create databases."""
    return pytestconfig.stash[SERVER]


@pytest.fixture(scope="session")
def new_login(server: str, worker_id: str):
    """Make a role that may log in with its own name as password; each is dropped at the end."""
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


# A role is dropped after the databases that it owns: hence the order of these two.
@pytest.fixture(scope="session")
def new_database(server: str, worker_id: str, new_login):  # noqa: ARG001
    """Make an empty database, of another owner if one is named; each is dropped at the end."""
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
    """A migrated database that the tests of one worker share, each with a user of its own."""
    url = new_database("shared")
    migrate(url)
    if request.config.option.divided or getattr(request, "param", "whole") == "divided":
        execute(url, DIVIDE)
    return url


@pytest.fixture(scope="session")
def pooler(server: str, request: pytest.FixtureRequest):
    """A PgBouncer with room for few between applications and server, or None on the direct way."""
    if getattr(request, "param", "direct") == "direct":
        yield None
    elif PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed")
    else:
        with pgbouncer(server, pool_size=3) as running:
            yield running


@pytest.fixture(scope="session")
def make_settings(database_url: str, pooler: Pooler | None):
    """Make settings as an application gets them: its way to the database is the one chosen."""

    def make(**changes: str) -> Settings:
        environ = {"DATABASE_URL": database_url, "AUTH_MODE": "none"} | changes
        if pooler:
            environ["DATABASE_URL"] = pooler.pooled_url(environ["DATABASE_URL"])
            environ.setdefault("DATABASE_PREPARE", "false")
        return load_settings(environ)

    return make


@pytest.fixture(scope="session")
def app(make_settings, logged_to: io.StringIO) -> Flask:  # noqa: ARG001  logging comes first
    # More threads than any test races with: as under gunicorn, none of them is turned away.
    application = create_app(make_settings(WEB_THREADS="16"))
    yield application
    application.services.pool.close()


@pytest.fixture
def make_app(make_settings, logged_to: io.StringIO):  # noqa: ARG001  it must not log elsewhere
    """Make an application with settings of its own; its connections are closed at the end."""
    with ExitStack() as stack:

        def make(pace: Pace | None = None, **changes: str) -> Flask:
            application = create_app(make_settings(**changes), pace)
            stack.callback(application.services.pool.close)
            return application

        yield make


@pytest.fixture
def open_database(make_settings):
    """Open the database as the application does, for the time of a test."""
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
    """Make a folder in which `make run` can be run; its data are removed at the end."""
    made = []

    def make(path: Path = tmp_path) -> Path:
        link_source(path)
        made.append(path)
        return path

    yield make
    for path in made:
        shutil.rmtree(data_of(path).parent, ignore_errors=True)


@pytest.fixture
def count(request: pytest.FixtureRequest):
    """Divide a count: all of it with --full, otherwise a fiftieth, and a tenth in a slow test.

    `least` is what a test needs to show anything.
    """
    return lambda full, least=1: max(least, full // request.param)


@pytest.fixture
def connection(database_url: str):
    """A superuser's own connection, for what no client can see or do."""
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
        answer = client.post(tasks_url, json={"title": "Buy oat milk"} | values)
        assert answer.status_code == 201, answer.text
        return Task(answer.json)

    return make


@pytest.fixture
def task(make_task) -> Task:
    return make_task(description="Two litres")


@pytest.fixture(scope="session")
def logged_to() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("info", stream)
    return stream


@pytest.fixture
def log_lines(logged_to: io.StringIO):
    """What was logged since the test began, each line read as JSON."""
    start = logged_to.tell()

    def read() -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in logged_to.getvalue()[start:].splitlines()]

    return read
