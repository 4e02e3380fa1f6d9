"""The log: one stream of JSON with one line per request, and without texts of users."""

import io
import logging

import orjson
import pytest
import structlog

from todo_api.logs import configure_logging


def request_lines(log_lines):
    return [line for line in log_lines() if line["event"] == "request"]


def test_request_is_logged_in_one_line(client, task, user_id, log_lines):
    response = client.patch(task.url, json={"title": "A secret title"})

    (line,) = [line for line in request_lines(log_lines) if line["method"] == "PATCH"]
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "todo_api.web.access_log",
        "method": "PATCH",
        "route": "/api/{user_id}/tasks/{task_id}",
        "status": 200,
        "user_id": user_id,
        "request_id": response.headers["X-Request-Id"],
    }


def test_text_of_users_is_not_logged(client, tasks_url, log_lines):
    client.post(tasks_url, json={"title": "secret one", "description": "secret two"})
    client.post(tasks_url, json={"title": "secret" * 100, "secret field": 1})
    client.post(tasks_url, data='{"secret', content_type="application/json")
    client.get(f"{tasks_url}?secret=secret")
    client.get(f"/secret/{tasks_url}")

    assert len(request_lines(log_lines)) == 5
    assert "secret" not in str(log_lines())


@pytest.mark.parametrize("request_id", ["7f3a", "a" * 128, "A.b_c-9"])
def test_valid_request_id_is_used(client, request_id):
    response = client.get("/livez", headers={"X-Request-Id": request_id})

    assert response.headers["X-Request-Id"] == request_id


@pytest.mark.parametrize(
    "request_id", ["", " ", "a" * 129, "a b", "a/b", "<script>", "é", "a;b", '"']
)
def test_invalid_request_id_is_replaced(client, request_id, log_lines):
    response = client.get("/nothing", headers={"X-Request-Id": request_id})

    new_id = response.headers["X-Request-Id"]
    assert new_id != request_id
    assert len(new_id) == 36
    assert response.json["instance"] == new_id
    assert [line["request_id"] for line in request_lines(log_lines)] == [new_id]


def test_libraries_log_to_the_same_stream(log_lines):
    logging.getLogger("gunicorn.error").info("Booting worker with pid: %s", 1)
    logging.getLogger("alembic").warning("two\nlines")

    first, second = log_lines()
    assert first["event"] == "Booting worker with pid: 1"
    assert first["logger"] == "gunicorn.error"
    assert second["event"] == "two\nlines"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def restored_logging(log_stream):
    yield
    configure_logging("info", log_stream)


@pytest.mark.usefixtures("restored_logging")
def test_log_on_a_terminal_is_readable_text():
    stream = Terminal()
    configure_logging("info", stream)

    structlog.get_logger("test").info("request", status=200)

    assert "status" in stream.getvalue()
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(stream.getvalue())


@pytest.mark.usefixtures("restored_logging")
def test_lines_below_the_level_are_not_logged():
    stream = io.StringIO()
    configure_logging("warning", stream)

    structlog.get_logger("test").info("quiet")
    logging.getLogger("gunicorn.error").info("quiet")
    structlog.get_logger("test").warning("loud")

    assert [orjson.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]
