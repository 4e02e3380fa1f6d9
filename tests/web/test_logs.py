"""The log: one stream of JSON, one line for each request, nothing of what users write."""

import io
import logging

import orjson
import pytest
import structlog

from todo_api.logs import configure_logging


def request_lines(log_lines):
    return [line for line in log_lines() if line["event"] == "request"]


def test_a_request_is_one_line(client, task, user_id, log_lines):
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


def test_nothing_that_a_user_wrote_is_logged(client, tasks_url, log_lines):
    client.post(tasks_url, json={"title": "secret one", "description": "secret two"})
    client.post(tasks_url, json={"title": "secret" * 100, "secret field": 1})
    client.post(tasks_url, data='{"secret', content_type="application/json")
    client.get(f"{tasks_url}?secret=secret")
    client.get(f"/secret/{tasks_url}")

    assert len(request_lines(log_lines)) == 5
    assert "secret" not in str(log_lines())


@pytest.mark.parametrize("given", ["7f3a", "a" * 128, "A.b_c-9"])
def test_a_well_formed_request_id_is_kept(client, given):
    response = client.get("/livez", headers={"X-Request-Id": given})

    assert response.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", " ", "a" * 129, "a b", "a/b", "<script>", "é", "a;b", '"'])
def test_a_request_id_of_another_form_is_replaced(client, given, log_lines):
    response = client.get("/nothing", headers={"X-Request-Id": given})

    made = response.headers["X-Request-Id"]
    assert made != given
    assert len(made) == 36
    assert response.json["instance"] == made
    assert [line["request_id"] for line in request_lines(log_lines)] == [made]


def test_the_lines_of_libraries_are_in_the_same_stream(log_lines):
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
def test_a_terminal_shows_lines_for_people():
    stream = Terminal()
    configure_logging("info", stream)

    structlog.get_logger("test").info("request", status=200)

    assert "status" in stream.getvalue()
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(stream.getvalue())


@pytest.mark.usefixtures("restored_logging")
def test_the_level_is_a_floor():
    stream = io.StringIO()
    configure_logging("warning", stream)

    structlog.get_logger("test").info("quiet")
    logging.getLogger("gunicorn.error").info("quiet")
    structlog.get_logger("test").warning("loud")

    assert [orjson.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]
