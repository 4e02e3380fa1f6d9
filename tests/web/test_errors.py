"""Failures: each has an owner, one shape, and tells a client no more than it needs."""

import uuid

import psycopg
import pytest
from psycopg import errors

from todo_api.db.errors import SQLSTATES
from todo_api.web.errors import problem_of_database_error


def problem(answer, status, kind):
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert set(answer.json) >= {"type", "title", "status", "detail", "instance"}
    assert answer.json["type"] == f"/problems/{kind}"
    assert answer.json["status"] == status
    assert answer.json["instance"] == answer.headers["X-Request-Id"]
    return answer.json


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/",
        "/favicon.ico",
        "/docs/",
        "/docs/../wsgi.py",
        "/docs/LICENSE",
        "//livez",
    ],
)
def test_a_path_that_is_not_there_is_a_problem(client, path):
    problem(client.get(path), 404, "not-found")


def test_a_path_with_more_slashes_is_another_path(client, task):
    for path in (f"{task.url}/", task.url.replace("/tasks/", "//tasks/"), f"/{task.url}"):
        problem(client.get(path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/{0}/tasks", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("POST", "/api/{0}/tasks/{0}", {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT"}),
        ("GET", "/api/{0}/tasks/{0}/complete", {"OPTIONS", "PATCH"}),
        ("POST", "/livez", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/docs", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_method_that_a_path_does_not_know_is_a_problem(client, user_id, method, path, allowed):
    answer = client.open(path.format(user_id), method=method)

    problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_a_head_is_answered_as_its_get_without_the_body(client, task):
    head, get = client.head(task.url), client.get(task.url)

    assert head.status_code == 200
    assert head.data == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.headers["ETag"] == get.headers["ETag"]


def test_options_says_which_methods_there_are(client, task):
    answer = client.options(task.url)

    assert answer.status_code == 200
    assert "PATCH" in answer.headers["Allow"]


def test_a_bug_is_logged_whole_and_answered_with_its_id(app, client, user_id, log_lines):
    # The row that the request needs is out of reach, as it would be after a wrong migration.
    app.view_functions["tasks.get_task"], view = raising, app.view_functions["tasks.get_task"]

    try:
        answer = client.get(f"/api/{user_id}/tasks/{uuid.uuid4()}")
    finally:
        app.view_functions["tasks.get_task"] = view

    assert problem(answer, 500, "internal-error")["detail"] == (
        "Report the id in `instance` to the operator: the server's log has the error."
    )
    logged = [line for line in log_lines() if line["level"] == "error"]
    assert [line["event"] for line in logged] == ["unhandled exception"]
    assert logged[0]["request_id"] == answer.json["instance"]
    assert "RuntimeError: what nobody should read" in logged[0]["exception"]


def raising(**_):
    raise RuntimeError("what nobody should read")


def test_a_constraint_that_a_client_cannot_break_is_our_bug(client, connection, task, log_lines):
    """The log names the constraint, and not the row: it holds a user's words."""
    connection.execute(
        "ALTER TABLE tasks ADD CONSTRAINT ck_tasks_test CHECK (title <> 'A secret title') NOT VALID"
    )
    try:
        answer = client.patch(task.url, json={"title": "A secret title"})
    finally:
        connection.execute("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_test")

    problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
    logged = [line for line in log_lines() if line["level"] == "error"]
    assert [line["constraint"] for line in logged] == ["ck_tasks_test"]
    assert logged[0]["sqlstate"] == "23514"
    assert "update_item" in logged[0]["stack"]
    assert "secret" not in str(log_lines())


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE tasks SET title = ''", "ck_tasks_title_length"),
        ("UPDATE tasks SET title = repeat('x', 256)", "ck_tasks_title_length"),
        ("UPDATE tasks SET title = U&' x'", "ck_tasks_title_stripped"),
        ("UPDATE tasks SET title = U&'x\\3000'", "ck_tasks_title_stripped"),
        ("UPDATE tasks SET description = repeat('x', 10001)", "ck_tasks_description_length"),
        ("UPDATE tasks SET user_id = NULL", None),
        ("UPDATE tasks SET completed = NULL", None),
    ],
)
def test_the_database_holds_the_rules_too(connection, task, statement, constraint):
    with pytest.raises(errors.IntegrityError) as refused:
        connection.execute(f"{statement} WHERE id = %s", (task["id"],))

    assert refused.value.diag.constraint_name == constraint


def test_a_rule_that_only_the_database_held_is_a_422():
    constraints = {"ck_things_size_range": ("/size", "Must be 1 to 9.")}

    refusal = problem_of_database_error(
        errors.CheckViolation(info=Diagnosed("ck_things_size_range")), constraints
    )

    assert refusal.status == 422
    assert refusal.errors == [{"pointer": "/size", "detail": "Must be 1 to 9."}]


@pytest.mark.parametrize("sqlstate", sorted(SQLSTATES))
def test_an_sqlstate_is_a_503_or_a_bug(sqlstate):
    refusal = problem_of_database_error(errors.lookup(sqlstate)(), {})

    if SQLSTATES[sqlstate].is_unavailable:
        assert refusal.status == 503
        assert refusal.headers["Retry-After"] == "1"
    else:
        assert refusal is None


@pytest.mark.parametrize(
    "error", [errors.ConnectionFailure, errors.SqlclientUnableToEstablishSqlconnection]
)
def test_every_connection_exception_is_a_503(error):
    assert problem_of_database_error(error(), {}).status == 503


@pytest.mark.parametrize(
    "error", [errors.UndefinedColumn, errors.SyntaxError, errors.CheckViolation]
)
def test_any_other_sqlstate_is_a_bug(error):
    assert problem_of_database_error(error(), {}) is None


def test_a_lost_connection_is_a_503():
    error = psycopg.OperationalError("server closed the connection")

    assert problem_of_database_error(error, {}).status == 503


class Diagnosed:
    """A result whose error names a constraint, as libpq gives it to psycopg."""

    def __init__(self, constraint):
        self._constraint = constraint

    def error_field(self, field):
        return self._constraint.encode() if field == ord("n") else None
