"""A user's tasks: parse, call one statement function, answer."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
from flask import Response, request

from todo_api.api import MERGE_PATCH, Blueprint, answer, database, no_content, user_data
from todo_api.errors import invalid, not_found
from todo_api.schemas import Completion, NewTask, Task, TaskPatch, TaskQuery, TaskReplacement
from todo_api.statements.tasks import (
    Position,
    delete_task,
    find_task,
    insert_task,
    list_tasks,
    update_task,
)

ETAG = {
    "ETag": {
        "description": "The version of the task.",
        "schema": {"type": "string", "example": '"1.7"'},
    }
}
LOCATION = {
    "Location": {
        "description": "The path of the new task.",
        "schema": {"type": "string", "format": "uri-reference"},
    }
}
LINK = {
    "Link": {
        "description": 'Where the next page is (`rel="next"`), if there is one.',
        "schema": {"type": "string"},
    }
}

blueprint = Blueprint(
    "tasks",
    __name__,
    url_prefix="/api/<id:user_id>/tasks",
    description="What a user has to do.",
)


@blueprint.post("")
@blueprint.arguments(NewTask)
@blueprint.response(201, Task, headers=LOCATION | ETAG)
def create_task(new: dict[str, Any], user_id: UUID) -> Response:
    """Create a task."""
    task = insert_task(database(), user_id, new)
    response = answer(task, 201)
    response.headers["Location"] = f"{request.path}/{task.id}"
    return response


@blueprint.get("")
@blueprint.arguments(TaskQuery, location="query")
@blueprint.response(200, Task(many=True), headers=LINK)
def list_tasks_of_user(query: dict[str, Any], user_id: UUID) -> Response:
    """List the user's tasks, newest first, a page at a time.

    `Link` names the next page for as long as there is one. A page of long tasks may end before
    its limit, at 1 MiB.
    """
    completed = query.get("completed")
    page = list_tasks(
        database(),
        user_id,
        limit=query["limit"],
        completed=completed,
        after=read_cursor(query.get("cursor"), completed=completed),
    )
    response = user_data(page.json)
    if page.end is not None:
        following = request.args.to_dict() | {"cursor": cursor(page.end, completed=completed)}
        response.headers["Link"] = f'<{request.path}?{urlencode(following)}>; rel="next"'
    return response


@blueprint.get("/<id:task_id>")
@blueprint.response(200, Task, headers=ETAG)
def get_task(user_id: UUID, task_id: UUID) -> Response:
    """Read one task."""
    return answer(find_task(database(), user_id, task_id))


@blueprint.put("/<id:task_id>")
@blueprint.arguments(TaskReplacement)
@blueprint.response(200, Task, headers=ETAG)
def replace_task(replacement: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Replace a task's title and description.

    A description that is not sent becomes null; `completed` is kept unless it is sent.
    """
    return answer(update_task(database(), user_id, task_id, replacement))


@blueprint.patch("/<id:task_id>")
@blueprint.arguments(TaskPatch, content_type=MERGE_PATCH)
@blueprint.response(200, Task, headers=ETAG)
def patch_task(changes: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Change the fields that are sent; the others stay as they are.

    The body is a JSON merge patch (RFC 7396). An empty one changes nothing.
    """
    return answer(update_task(database(), user_id, task_id, changes))


@blueprint.patch("/<id:task_id>/complete")
@blueprint.arguments(Completion, required=False)
@blueprint.response(200, Task, headers=ETAG)
def complete_task(completion: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Set whether a task is done: without a body, it is.

    It sets and never toggles, so that a repeated request does not undo the first.
    """
    return answer(update_task(database(), user_id, task_id, completion))


@blueprint.delete("/<id:task_id>")
@blueprint.response(204)
def remove_task(user_id: UUID, task_id: UUID) -> Response:
    """Delete a task. A second time it is not found."""
    if not delete_task(database(), user_id, task_id):
        raise not_found()
    return no_content()


def cursor(end: Position, *, completed: bool | None) -> str:
    """An opaque name of where a page of this query ended."""
    fields = [end.created_at.isoformat(), str(end.id), completed]
    return urlsafe_b64encode(orjson.dumps(fields)).decode().rstrip("=")


def read_cursor(text: str | None, *, completed: bool | None) -> Position | None:
    """The position that `cursor` named; 422 if it is not one of this query."""
    if text is None:
        return None
    try:
        created_at, task_id, _ = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        position = Position(datetime.fromisoformat(created_at), UUID(task_id))
    except (ValueError, TypeError, AttributeError):
        position = None
    if (
        position is None
        or position.created_at.tzinfo is not UTC
        or cursor(position, completed=completed) != text
    ):
        detail = "Must come from the Link of a page of the same query."
        raise invalid([{"parameter": "cursor", "detail": detail}])
    return position
