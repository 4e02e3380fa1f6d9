"""Upper bounds: Flask and WSGI send the same bytes under the same gunicorn, without any work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flask import Flask, Response, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TASK = json.dumps(
    {
        "id": "01900000-0000-7000-8000-000000000001",
        "user_id": "00000000-0000-4000-8000-000000000001",
        "title": "Buy oat milk, number 1",
        "description": "Two litres of the plain kind, and none of the ones with sugar in them.",
        "completed": False,
        "completed_at": None,
        "priority": "high",
        "labels": ["errand", "shop 1"],
        "due_date": "2026-11-21",
        "due_time": "09:30:00",
        "time_zone": "Europe/Berlin",
        "due_at": "2026-11-21T08:30:00.000000Z",
        "start_date": "2026-11-20",
        "list_id": None,
        "parent_id": None,
        "position": "8DmRSNCx1V",
        "metadata": {"source": "mail", "thread": "message-1"},
        "created_at": "2026-01-01T00:00:01.123456Z",
        "updated_at": "2026-01-01T00:00:01.123456Z",
        "revision": 2**52 + 1,
    }
).encode()
TASKS = b"[" + b",\n".join([TASK] * 50) + b"]"
JSON = "application/json"

flask = Flask(__name__)


@flask.get("/api/<user_id>/tasks/<task_id>")
def get_task(user_id: str, task_id: str) -> Response:  # noqa: ARG001  the route defines the arguments
    return Response(TASK, mimetype=JSON)


@flask.get("/api/<user_id>/tasks")
def list_tasks(user_id: str) -> Response:  # noqa: ARG001
    return Response(TASKS, mimetype=JSON)


@flask.post("/api/<user_id>/tasks")
def create_task(user_id: str) -> Response:  # noqa: ARG001
    request.get_json()
    return Response(TASK, 201, mimetype=JSON)


def wsgi(environ: dict, start_response: Callable) -> Iterable[bytes]:
    """Serve the same three operations without a framework."""
    status, body = "200 OK", TASK
    if environ["REQUEST_METHOD"] == "POST":
        json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        status = "201 Created"
    elif environ["PATH_INFO"].endswith("/tasks"):
        body = TASKS
    start_response(status, [("Content-Type", JSON), ("Content-Length", str(len(body)))])
    return [body]
