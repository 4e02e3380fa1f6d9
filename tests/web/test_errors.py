"""Errors: each is a problem (RFC 9457) with the right status, and contains no internal data."""

import uuid

import psycopg
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from psycopg import errors

from todo_api.db.errors import SQLSTATES
from todo_api.web.errors import problem_of_database_error
from todo_api.web.requests import current_request

SECRET = "a-secret-of-the-tests-that-is-long-enough"


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
        "/api",
        "/api/",
        "/favicon.ico",
        "/docs/",
        "/docs/../wsgi.py",
        "/docs/LICENSE",
        "/docs//start.js",
    ],
)
def test_unknown_path_is_a_404_problem(client, path):
    check_problem(client.get(path), 404, "not-found")


NO_ROUTE = "No route has this path: /openapi.json lists all routes."
NO_ROUTE_WITH_SLASH = "No route has this path: remove the slash at its end."
NO_ITEM = "Check the path: the resource does not exist, or it belongs to another user."


def test_path_with_extra_slashes_is_unknown(client, task):
    for path in (f"{task.url}/", task.url.replace("/tasks/", "//tasks/"), f"/{task.url}"):
        check_problem(client.get(path), 404, "not-found")


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/nothing", NO_ROUTE),
        ("/nothing/", NO_ROUTE),
        ("/api/{user}/task", NO_ROUTE),
        ("/api/{user}/tasks//", NO_ROUTE),
        ("/api/{user}/tasks/", NO_ROUTE_WITH_SLASH),
        ("/api/{user}/tasks/{task}/", NO_ROUTE_WITH_SLASH),
        ("/api/{user}/tasks/{task}/complete/", NO_ROUTE_WITH_SLASH),
        ("/api/{user}/", NO_ROUTE_WITH_SLASH),
        ("/api/session/", NO_ROUTE_WITH_SLASH),
        ("/livez/", NO_ROUTE_WITH_SLASH),
    ],
)
def test_a_path_without_a_route_says_so(client, user_id, task, method, path, detail):
    response = client.open(path.format(user=user_id, task=task["id"]), method=method)

    assert check_problem(response, 404, "not-found")["detail"] == detail


def test_404_differs_for_a_missing_route_but_not_for_a_missing_and_a_foreign_task(make_app, client):
    app = make_app(AUTH_MODE="jwt", JWT_SECRET=SECRET)
    user, other = str(uuid.uuid4()), str(uuid.uuid4())
    theirs = client.post(f"/api/{other}/tasks", json={"title": "x"}).json["id"]
    token = jwt.encode({"alg": "HS256"}, {"sub": user, "exp": 2**32}, OctKey.import_key(SECRET))

    def ask(path):
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "one"}
        response = app.test_client().get(path, headers=headers)
        assert check_problem(response, 404, "not-found")["detail"] in (NO_ITEM, NO_ROUTE)
        return response.data, sorted(response.headers)

    hidden = [
        ask(f"/api/{user}/tasks/{uuid.uuid4()}"),
        ask(f"/api/{user}/tasks/{theirs}"),
        ask(f"/api/{other}/tasks/{theirs}"),
        ask(f"/api/{other}/tasks/{theirs}/"),
        ask(f"/api/{other}/tasks/"),
        ask(f"/api/{other}/nothing"),
        ask(f"/api/{uuid.uuid4()}/tasks"),
    ]

    assert all(each == hidden[0] for each in hidden)
    assert NO_ITEM.encode() in hidden[0][0]
    assert NO_ROUTE.encode() in ask(f"/api/{user}/nothing")[0]


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


PATCH_TYPES = "application/merge-patch+json, application/json"


@pytest.mark.parametrize(
    ("path", "allowed", "patch_types"),
    [
        ("/livez", "GET, HEAD, OPTIONS", None),
        ("/", "GET, HEAD, OPTIONS", None),
        ("/api/{user}/tasks", "GET, HEAD, OPTIONS, POST", None),
        ("/api/{user}/tasks/{task}", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT", PATCH_TYPES),
        ("/api/{user}/tasks/{task}/complete", "OPTIONS, PATCH", "application/json"),
    ],
)
def test_options_lists_the_methods(client, task, path, allowed, patch_types):
    response = client.options(path.format(user=task["user_id"], task=task["id"]))

    assert response.status_code == 200
    assert response.data == b""
    assert response.headers["Content-Length"] == "0"
    assert "Content-Type" not in response.headers
    assert response.headers["Allow"] == allowed
    assert response.headers.get("Accept-Patch") == patch_types


def test_unsupported_patch_names_the_types_of_a_patch(client, task, tasks_url):
    def send(method, url):
        response = client.open(url, method=method, data=b"title: x", content_type="text/yaml")
        check_problem(response, 415, "unsupported-media-type")
        return response.headers.get("Accept-Patch")

    assert send("PATCH", task.url) == PATCH_TYPES
    assert send("PATCH", f"{task.url}/complete") == "application/json"
    assert send("PUT", task.url) is None
    assert send("POST", tasks_url) is None


def test_bug_is_logged_with_the_request_id_of_the_response(app, client, user_id, log_lines):
    # Replace the view by one that raises an exception, as a view with a bug does.
    app.view_functions["tasks.get_task"], view = raise_error, app.view_functions["tasks.get_task"]

    try:
        response = client.get(f"/api/{user_id}/tasks/{uuid.uuid4()}")
    finally:
        app.view_functions["tasks.get_task"] = view

    assert check_problem(response, 500, "internal-error")["detail"] == (
        "Report the id in `instance` to the operator: the server's log has the error."
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


SIZE_RULE = {"size": "Needs a unit.", "unit": "Send size: null, too."}


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"size": 1}, "size"),
        ({"unit": None}, "unit"),
        ({"unit": None, "size": 1}, "size"),
        ({"title": "x"}, "size"),
        ({}, "size"),
        ([], "size"),
        (None, "size"),
    ],
    ids=["first", "second", "both", "neither", "no-member", "array", "no-body"],
)
def test_violation_of_a_mapped_constraint_is_a_422_at_a_member_that_was_sent(app, body, member):
    with app.test_request_context():
        current_request().body = body

        problem = problem_of_database_error(
            errors.CheckViolation(info=ResultWithConstraint("ck_widgets_size")),
            {"ck_widgets_size": SIZE_RULE},
            {},
        )

    assert problem.status == 422
    assert problem.errors == [{"pointer": f"/{member}", "detail": SIZE_RULE[member]}]


@pytest.mark.parametrize("sqlstate", sorted(SQLSTATES))
def test_sqlstate_of_unavailability_is_a_503(sqlstate):
    problem = problem_of_database_error(errors.lookup(sqlstate)(), {}, {})

    if SQLSTATES[sqlstate].is_unavailable:
        assert problem.status == 503
        assert problem.headers["Retry-After"] == "1"
    else:
        assert problem is None


@pytest.mark.parametrize(
    "error", [errors.ConnectionFailure, errors.SqlclientUnableToEstablishSqlconnection]
)
def test_every_connection_exception_is_a_503(error):
    assert problem_of_database_error(error(), {}, {}).status == 503


@pytest.mark.parametrize(
    "error", [errors.UndefinedColumn, errors.SyntaxError, errors.CheckViolation]
)
def test_unknown_sqlstate_is_a_bug(error):
    assert problem_of_database_error(error(), {}, {}) is None


def test_lost_connection_is_a_503():
    error = psycopg.OperationalError("server closed the connection")

    assert problem_of_database_error(error, {}, {}).status == 503


class ResultWithConstraint:
    """A result of libpq whose error names a constraint."""

    def __init__(self, constraint):
        self._constraint = constraint

    def error_field(self, field):
        return self._constraint.encode() if field == ord("n") else None
