"""A user's tasks: parse, call one statement function, answer."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from flask import Response

from todo_api.api import (
    Blueprint,
    answer,
    answer_change,
    condition,
    database,
    no_content,
    not_modified,
    user_data,
)
from todo_api.cursors import cursor, digest, read_cursor, read_since
from todo_api.document import MERGE_PATCH
from todo_api.errors import (
    conflict,
    gone,
    key_reused,
    malformed_header,
    not_found,
    precondition_failed,
)
from todo_api.idempotency import REPLAYED, fingerprint, idempotency_key
from todo_api.messages import current_request
from todo_api.metrics import REPLAYS
from todo_api.preconditions import etag, tags
from todo_api.schemas import (
    TASK_PAGE,
    Changes,
    ChangesQuery,
    Completion,
    NewTask,
    Task,
    TaskPatch,
    TaskQuery,
    TaskReplacement,
)
from todo_api.statements.pages import FILTERS, list_changes, list_tasks
from todo_api.statements.tasks import (
    delete_task,
    find_task,
    insert_named_task,
    insert_task,
    insert_task_once,
    restore_task,
    update_task,
)

blueprint = Blueprint(
    "tasks", __name__, url_prefix="/api/<id:user_id>", description="What a user has to do."
)


@blueprint.post("/tasks")
@blueprint.arguments(NewTask)
@blueprint.response(201, Task)
@blueprint.idempotent
def create_task(new: dict[str, Any], user_id: UUID) -> Response:
    """Create a task.

    All that it needs is a title. `Location` says where it is from then on. With an
    `Idempotency-Key`, a request that is sent again creates nothing: it gets the first one's answer,
    for 24 hours at least.
    """
    key = idempotency_key()
    if key is None:
        task, replayed = insert_task(database(), user_id, new), False
    else:
        answered = insert_task_once(database(), user_id, new, key, fingerprint())
        if answered is None:
            raise key_reused()
        task, replayed = answered
    response = answer(task, 201)
    response.headers["Location"] = f"/api/{user_id}/tasks/{task.id}"
    if replayed:
        REPLAYS.inc()
        response.headers[REPLAYED] = "true"
    return response


@blueprint.get("/tasks")
@blueprint.arguments(TaskQuery, location="query")
@blueprint.response(200, TASK_PAGE)
@blueprint.response(304)
def list_tasks_of_user(query: dict[str, Any], user_id: UUID) -> Response:
    """List the user's tasks, a page at a time.

    Newest first, unless `sort` says otherwise; `deleted=true` lists the trash. `Link` names the
    next page for as long as there is one. A page of long tasks may end before its limit, at 1 MiB.
    A cursor is good for the query that it came from, and shows nothing twice.
    """
    filters = {name: query[name] for name in query.keys() & FILTERS.keys()}
    if "q" in filters:
        filters["q"] = pattern(filters["q"])
    this = digest(filters, query["sort"], query["deleted"])
    page = list_tasks(
        database(),
        user_id,
        filters,
        limit=query["limit"],
        sort=query["sort"],
        deleted=query["deleted"],
        after=read_cursor(query.get("cursor"), this, query["sort"]),
        known=known_revisions(),
    )
    response = collection(page.revision, b"[" + b",\n".join(page.tasks) + b"]")
    if page.end is not None:
        request = current_request()
        following = request.args.to_dict() | {"cursor": cursor(page.end, this)}
        response.headers["Link"] = f'<{request.path}?{urlencode(following)}>; rel="next"'
    return response


@blueprint.get("/changes")
@blueprint.arguments(ChangesQuery, location="query")
@blueprint.response(200, Changes)
@blueprint.response(304)
@blueprint.response(410)
def list_changes_of_user(query: dict[str, Any], user_id: UUID) -> Response:
    """Tell what has changed since, in order, so that a client can hold what the server holds.

    `since=0` starts a full sync: forget what you have, apply the pages while `more` is true, and
    go on from `next` whenever you like. Of a deleted task there is only its id. 410 means that
    what you have cannot be brought up to date any more: start a full sync.
    """
    since = read_since(query["since"])
    page = list_changes(
        database(),
        user_id,
        since=since.revision,
        start=since.deletions_after,
        limit=query["limit"],
        known=known_revisions(),
    )
    if since.lost(page):
        raise gone()
    changes = b",\n".join(change.json for change in page.changes)
    following = since.after(page)
    # A full sync that has gone stale on its way is at its end, but not done: the next one is 410.
    more = b"true" if page.more or following.broken else b"false"
    text = following.text().encode()
    return collection(
        page.revision,
        b'{"changes": [' + changes + b'], "next": "' + text + b'", "more": ' + more + b"}",
    )


@blueprint.get("/tasks/<id:task_id>")
@blueprint.response(200, Task)
@blueprint.response(304)
def get_task(user_id: UUID, task_id: UUID) -> Response:
    """Read one task.

    With `If-None-Match` and the `ETag` of what you have: 304 for as long as that is how it is.
    """
    return answer(find_task(database(), user_id, task_id))


@blueprint.put("/tasks/<id:task_id>")
@blueprint.arguments(TaskReplacement)
@blueprint.response(200, Task)
@blueprint.response(201, Task)
@blueprint.response(409)
@blueprint.conditional
def replace_task(replacement: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Replace a task's title and description.

    A description that is not sent becomes null; `completed` is kept unless it is sent. With
    `If-None-Match: *` the task is created, under this id, and 412 if there is one.
    """
    given = tags("If-None-Match")
    if given is not None and given.any:
        return create_named_task(replacement, user_id, task_id)
    return answer_change(update_task(database(), user_id, task_id, replacement, condition()))


def create_named_task(replacement: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    if tags("If-Match") is not None:
        raise malformed_header("If-Match", "Contradicts If-None-Match: *.")
    task, done = insert_named_task(database(), user_id, task_id, {"completed": False} | replacement)
    if task is None:
        raise not_found()
    if not done and task.deleted:
        raise conflict("in-trash", f"It is in the trash: POST {current_request().path}/restore.")
    if not done:
        raise precondition_failed(task.json, etag(task.revision))
    response = answer(task, 201)
    response.headers["Location"] = current_request().path
    return response


@blueprint.patch("/tasks/<id:task_id>")
@blueprint.arguments(TaskPatch, content_type=MERGE_PATCH)
@blueprint.response(200, Task)
@blueprint.conditional
def patch_task(changes: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Change the fields that are sent; the others stay as they are.

    The body is a JSON merge patch (RFC 7396). An empty one changes nothing.
    """
    return answer_change(update_task(database(), user_id, task_id, changes, condition()))


@blueprint.patch("/tasks/<id:task_id>/complete")
@blueprint.arguments(Completion, required=False)
@blueprint.response(200, Task)
@blueprint.conditional
def complete_task(completion: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Set whether a task is done: without a body, it is.

    It sets and never toggles, so that a repeated request does not undo the first.
    """
    return answer_change(update_task(database(), user_id, task_id, completion, condition()))


@blueprint.delete("/tasks/<id:task_id>")
@blueprint.response(204)
@blueprint.conditional
def remove_task(user_id: UUID, task_id: UUID) -> Response:
    """Put a task into the trash.

    For 30 days it can be restored; for all else it is not there: a second time is 404.
    """
    answer_change(delete_task(database(), user_id, task_id, condition()))
    return no_content()


@blueprint.post("/tasks/<id:task_id>/restore")
@blueprint.response(200, Task)
@blueprint.response(409)
@blueprint.conditional
def restore_from_trash(user_id: UUID, task_id: UUID) -> Response:
    """Take a task out of the trash.

    It is as it was, with a new revision. A task that is not in the trash is a conflict.
    """
    found = restore_task(database(), user_id, task_id, condition())
    if found.task is not None and not found.done and not found.task.deleted:
        raise conflict("not-in-trash", "It is not in the trash.")
    return answer_change(found)


def pattern(text: str) -> str:
    """The text, anywhere, as an ILIKE pattern in which it means itself."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def collection(revision: int, body: bytes) -> Response:
    """A page, with the ETag of the owner's revision and the query; 304 if the client knows it."""
    query = digest(current_request().query_string)
    tag = etag(revision, query)
    given = tags("If-None-Match")
    if given and (given.any or revision in given.revisions(query, weak=True)):
        return not_modified(tag)
    return user_data(body, tag)


def known_revisions() -> list[int]:
    """The revisions of which the client has this page."""
    given = tags("If-None-Match")
    return given.revisions(digest(current_request().query_string), weak=True) if given else []
