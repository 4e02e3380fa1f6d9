"""Failures: each has an owner, one shape, and tells a client no more than it needs."""

import uuid

import psycopg
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from psycopg import errors

from todo_api.db.errors import SQLSTATES
from todo_api.web.errors import problem_of_database_error

SECRET = "a-secret-of-the-tests-that-is-long-enough"


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
        "/api",
        "/api/",
        "/favicon.ico",
        "/docs/",
        "/docs/../wsgi.py",
        "/docs/LICENSE",
        "/docs//start.js",
    ],
)
def test_a_path_that_is_not_there_is_a_problem(client, path):
    problem(client.get(path), 404, "not-found")


NO_ROUTE = "No route has this path: /openapi.json lists all routes."
NO_ROUTE_WITH_SLASH = "No route has this path: remove the slash at its end."
NO_ITEM = "It does not exist, or it is not yours."


def test_a_path_with_more_slashes_is_another_path(client, task):
    for path in (f"{task.url}/", task.url.replace("/tasks/", "//tasks/"), f"/{task.url}"):
        problem(client.get(path), 404, "not-found")


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
    answer = client.open(path.format(user=user_id, task=task["id"]), method=method)

    assert problem(answer, 404, "not-found")["detail"] == detail


def test_a_missing_task_is_told_from_a_missing_route_and_not_from_another_users(make_app, client):
    app = make_app(AUTH_MODE="jwt", JWT_SECRET=SECRET)
    user, other = str(uuid.uuid4()), str(uuid.uuid4())
    theirs = client.post(f"/api/{other}/tasks", json={"title": "x"}).json["id"]
    token = jwt.encode({"alg": "HS256"}, {"sub": user, "exp": 2**32}, OctKey.import_key(SECRET))

    def ask(path):
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "one"}
        answer = app.test_client().get(path, headers=headers)
        assert problem(answer, 404, "not-found")["detail"] in (NO_ITEM, NO_ROUTE)
        return answer.data, sorted(answer.headers)

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
def test_options_says_which_methods_there_are(client, task, path, allowed, patch_types):
    answer = client.options(path.format(user=task["user_id"], task=task["id"]))

    assert answer.status_code == 200
    assert answer.data == b""
    assert answer.headers["Content-Length"] == "0"
    assert "Content-Type" not in answer.headers
    assert answer.headers["Allow"] == allowed
    assert answer.headers.get("Accept-Patch") == patch_types


def test_unsupported_patch_names_the_types_of_a_patch(client, task, tasks_url):
    def send(method, url):
        answer = client.open(url, method=method, data=b"title: x", content_type="text/yaml")
        problem(answer, 415, "unsupported-media-type")
        return answer.headers.get("Accept-Patch")

    assert send("PATCH", task.url) == PATCH_TYPES
    assert send("PATCH", f"{task.url}/complete") == "application/json"
    assert send("PUT", task.url) is None
    assert send("POST", tasks_url) is None


def test_a_bug_is_logged_whole_and_answered_with_its_id(app, client, user_id, log_lines):
    # The row that the request needs is out of reach, as it would be after a wrong migration.
    app.view_functions["tasks.get_task"], view = raising, app.view_functions["tasks.get_task"]

    try:
        answer = client.get(f"/api/{user_id}/tasks/{uuid.uuid4()}")
    finally:
        app.view_functions["tasks.get_task"] = view

    assert problem(answer, 500, "internal-error")["detail"] == (
        "The server's log has more, under the id in instance."
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
