"""Errors: each is a problem (RFC 9457) with the right status, and contains no internal data."""

import uuid

import psycopg
import pytest
from psycopg import errors

from todo_api.db.errors import SQLSTATES
from todo_api.web.errors import problem_of_database_error


def check_problem(response, status, type_name):
    """Check that the response is a problem of this status and type; return its JSON object."""
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert set(response.json) >= {"type", "title", "status", "detail", "instance"}
    assert response.json["type"] == f"/problems/{type_name}"
    assert response.json["status"] == status
    assert response.json["instance"] == response.headers["X-Request-Id"]
    return response.json


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
def test_unknown_path_is_a_404_problem(client, path):
    check_problem(client.get(path), 404, "not-found")


def test_path_with_extra_slashes_is_unknown(client, task):
    for path in (f"{task.url}/", task.url.replace("/tasks/", "//tasks/"), f"/{task.url}"):
        check_problem(client.get(path), 404, "not-found")


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
def test_unknown_method_is_a_405_problem_with_allow(client, user_id, method, path, allowed):
    response = client.open(path.format(user_id), method=method)

    check_problem(response, 405, "method-not-allowed")
    assert set(response.headers["Allow"].split(", ")) == allowed


def test_head_has_the_headers_of_get_and_no_body(client, task):
    head, get = client.head(task.url), client.get(task.url)

    assert head.status_code == 200
    assert head.data == b""
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.headers["ETag"] == get.headers["ETag"]


def test_options_lists_the_methods(client, task):
    response = client.options(task.url)

    assert response.status_code == 200
    assert "PATCH" in response.headers["Allow"]


def test_bug_is_logged_with_the_request_id_of_the_response(app, client, user_id, log_lines):
    # Replace the view by one that raises an exception, as a view with a bug does.
    app.view_functions["tasks.get_task"], view = raise_error, app.view_functions["tasks.get_task"]

    try:
        response = client.get(f"/api/{user_id}/tasks/{uuid.uuid4()}")
    finally:
        app.view_functions["tasks.get_task"] = view

    assert check_problem(response, 500, "internal-error")["detail"] == (
        "The server's log has more, under the id in instance."
    )
    errors_logged = [line for line in log_lines() if line["level"] == "error"]
    assert [line["event"] for line in errors_logged] == ["unhandled exception"]
    assert errors_logged[0]["request_id"] == response.json["instance"]
    assert "RuntimeError: an internal detail" in errors_logged[0]["exception"]


def raise_error(**_):
    raise RuntimeError("an internal detail")


def test_violation_of_an_unmapped_constraint_is_a_500(client, connection, task, log_lines):
    """The log names the constraint, but not the row, which contains a user's text."""
    connection.execute(
        "ALTER TABLE tasks ADD CONSTRAINT ck_tasks_test CHECK (title <> 'A secret title') NOT VALID"
    )
    try:
        response = client.patch(task.url, json={"title": "A secret title"})
    finally:
        connection.execute("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_test")

    check_problem(response, 500, "internal-error")
    assert "secret" not in response.text
    errors_logged = [line for line in log_lines() if line["level"] == "error"]
    assert [line["constraint"] for line in errors_logged] == ["ck_tasks_test"]
    assert errors_logged[0]["sqlstate"] == "23514"
    assert "update_item" in errors_logged[0]["stack"]
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
def test_database_enforces_the_rules_of_fields(connection, task, statement, constraint):
    with pytest.raises(errors.IntegrityError) as error:
        connection.execute(f"{statement} WHERE id = %s", (task["id"],))

    assert error.value.diag.constraint_name == constraint


def test_violation_of_a_mapped_constraint_is_a_422():
    constraints = {"ck_widgets_size_range": ("/size", "Must be 1 to 9.")}

    problem = problem_of_database_error(
        errors.CheckViolation(info=ResultWithConstraint("ck_widgets_size_range")), constraints
    )

    assert problem.status == 422
    assert problem.errors == [{"pointer": "/size", "detail": "Must be 1 to 9."}]


@pytest.mark.parametrize("sqlstate", sorted(SQLSTATES))
def test_sqlstate_of_unavailability_is_a_503(sqlstate):
    problem = problem_of_database_error(errors.lookup(sqlstate)(), {})

    if SQLSTATES[sqlstate].is_unavailable:
        assert problem.status == 503
        assert problem.headers["Retry-After"] == "1"
    else:
        assert problem is None


@pytest.mark.parametrize(
    "error", [errors.ConnectionFailure, errors.SqlclientUnableToEstablishSqlconnection]
)
def test_every_connection_exception_is_a_503(error):
    assert problem_of_database_error(error(), {}).status == 503


@pytest.mark.parametrize(
    "error", [errors.UndefinedColumn, errors.SyntaxError, errors.CheckViolation]
)
def test_unknown_sqlstate_is_a_bug(error):
    assert problem_of_database_error(error(), {}) is None


def test_lost_connection_is_a_503():
    error = psycopg.OperationalError("server closed the connection")

    assert problem_of_database_error(error, {}).status == 503


class ResultWithConstraint:
    """A result of libpq whose error names a constraint."""

    def __init__(self, constraint):
        self._constraint = constraint

    def error_field(self, field):
        return self._constraint.encode() if field == ord("n") else None
