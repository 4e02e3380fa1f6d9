"""The application with a database that is slow, absent, not migrated, or set to another zone."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import literal_column, select, update

from tests.support.postgresql import NOT_DURABLE, as_login, execute, migrate
from todo_api.commands.embedded import temporary_cluster
from todo_api.db.schema_version import SCHEMA_VERSION
from todo_api.db.statement import OWNER, Statement, compiled
from todo_api.tasks.fields import TASK

EARLIER_VERSIONS = [f"{number:04d}" for number in range(1, int(SCHEMA_VERSION))]

tasks = TASK.table


def assert_unavailable(response):
    assert response.status_code == 503
    assert response.content_type == "application/problem+json"
    assert response.headers["Retry-After"] == "1"
    assert response.json == {
        "type": "/problems/unavailable",
        "title": "Service unavailable",
        "status": 503,
        "detail": response.json["detail"],
        "instance": response.headers["X-Request-Id"],
    }


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (select(tasks.c.id).where(tasks.c.user_id == OWNER, tasks.c.title == "Mine"), "title_1"),
        (select(tasks.c.id).where(tasks.c.user_id == OWNER).limit(5), "param_1"),
        (update(tasks).where(tasks.c.user_id == OWNER).values(completed=False), "completed"),
    ],
)
def test_statement_that_contains_a_value_is_refused(statement, name):
    with pytest.raises(ValueError, match=name):
        compiled(statement)


def test_statement_with_parameters_only_is_compiled():
    statement = compiled(select(literal_column("1")).where(tasks.c.user_id == OWNER))

    assert b"%(owner)s" in statement.sql


def test_value_that_cannot_be_adapted_keeps_the_connection(open_database, user_id):
    database = open_database(WEB_THREADS="2")
    backend = Statement(b"SELECT pg_backend_pid(), %(value)s::text")
    before = database.one(user_id, backend, value="a")

    for _ in range(3):
        with pytest.raises(psycopg.ProgrammingError):
            database.one(user_id, backend, value=object())

    assert database.one(user_id, backend, value="a") == before


@pytest.fixture(scope="module")
def customized_url(server, new_database, new_login):
    """A database and a login whose settings differ from the defaults."""
    login = new_login("elsewhere")
    url = new_database("elsewhere")
    migrate(url)
    execute(server, f"GRANT todo_app TO {login}")
    with psycopg.connect(url, autocommit=True) as connection:
        database = connection.info.dbname
        connection.execute(f"ALTER DATABASE {database} SET timezone = 'Asia/Kathmandu'")
        connection.execute(f"ALTER ROLE {login} SET datestyle = 'German'")
        connection.execute(f"ALTER ROLE {login} SET intervalstyle = 'sql_standard'")
    return as_login(url, login)


@pytest.mark.parametrize("time_zone", ["Asia/Kathmandu", "America/St_Johns", "UTC"])
def test_date_times_are_the_same_in_every_time_zone(make_app, customized_url, tasks_url, time_zone):
    with psycopg.connect(customized_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE CURRENT_USER SET timezone = '{time_zone}'")
    client = make_app(DATABASE_URL=customized_url).test_client()
    before = datetime.now(UTC)

    created = [client.post(tasks_url, json={"title": str(number)}).json for number in range(3)]

    for task in created:
        assert task["created_at"].endswith("Z")
        assert timedelta(0) <= datetime.fromisoformat(task["created_at"]) - before < timedelta(0, 5)
    assert client.get(tasks_url).json == created[::-1]
    first = client.get(f"{tasks_url}?limit=2")
    next_url = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert [*first.json, *client.get(next_url).json] == created[::-1]


def test_statement_is_stopped_at_the_request_timeout(make_app, task, database_url):
    client = make_app(REQUEST_TIMEOUT="0.5").test_client()
    client.get(task.url)

    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
        started_at = time.monotonic()
        response = client.patch(task.url, json={"title": "Buy oats"})
        duration = time.monotonic() - started_at
        unchanged = client.get(task.url)

    assert_unavailable(response)
    assert 0.4 <= duration < 2
    assert unchanged.json == task
    assert client.patch(task.url, json={"title": "Buy oats"}).status_code == 200


@pytest.mark.parametrize(
    "url", ["postgresql://todo@127.0.0.1:1/todo", "postgresql://todo@/todo?host=/nowhere"]
)
def test_without_a_database_only_livez_succeeds(make_app, tasks_url, url, log_lines):
    client = make_app(DATABASE_URL=url, REQUEST_TIMEOUT="0.3").test_client()

    assert client.get("/livez").status_code == 200
    assert_unavailable(client.get("/health"))
    assert_unavailable(client.get(tasks_url))
    assert_unavailable(client.post(tasks_url, json={"title": "Buy oat milk"}))
    assert not any("exception" in line for line in log_lines())


def test_health_needs_a_migrated_database(make_app, new_database):
    url = new_database("unmigrated")
    client = make_app(DATABASE_URL=url).test_client()

    empty = client.get("/health")
    migrate(url)
    migrated = client.get("/health")
    migrate(url, "base")
    downgraded = client.get("/health")

    assert migrated.status_code == 200
    assert_unavailable(empty)
    assert_unavailable(downgraded)


@pytest.mark.parametrize("version", EARLIER_VERSIONS)
def test_health_needs_every_migration(make_app, new_database, version):
    url = new_database("unfinished")
    migrate(url, version)

    response = make_app(DATABASE_URL=url).test_client().get("/health")

    assert_unavailable(response)


def test_health_needs_the_role_of_requests(make_app):
    with temporary_cluster(options=NOT_DURABLE) as cluster:
        app = make_app(DATABASE_URL=cluster.url())
        response = app.test_client().get("/health")
        app.services.pool.close()

    assert_unavailable(response)


def test_health_needs_a_login_that_may_use_the_role(make_app, database_url, new_login):
    url = as_login(database_url, new_login("unprivileged"))

    response = make_app(DATABASE_URL=url).test_client().get("/health")

    assert_unavailable(response)


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (EARLIER_VERSIONS[-1], 503),
        (SCHEMA_VERSION, 200),
        (f"{int(SCHEMA_VERSION) + 1:04d}", 200),
        ("9999", 200),
    ],
)
def test_health_accepts_a_newer_schema(make_app, new_database, version, status):
    url = new_database("version")
    migrate(url)
    execute(url, f"UPDATE alembic_version SET version_num = '{version}'")

    response = make_app(DATABASE_URL=url).test_client().get("/health")

    assert response.status_code == status


@pytest.mark.direct("clients of a pooler share the server's prepared statements")
@pytest.mark.parametrize(("prepare", "prepared"), [("true", True), ("false", False)])
def test_statements_are_prepared_unless_the_setting_is_false(
    make_app, tasks_url, prepare, prepared
):
    app = make_app(DATABASE_PREPARE=prepare, WEB_THREADS="1")
    client = app.test_client()

    for _ in range(7):
        created = client.post(tasks_url, json={"title": "Buy oat milk"})
        task_url = created.headers["Location"]
        assert client.get(task_url).json == created.json
        assert client.patch(task_url, json={"title": "Buy oats"}).status_code == 200
        assert client.get(f"{tasks_url}?limit=1").json[0]["title"] == "Buy oats"
        assert client.delete(task_url).status_code == 204

    with app.services.pool._pool.connection() as connection:
        names = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    assert bool(names) is prepared
