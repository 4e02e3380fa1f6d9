"""The routes of tasks: those that each resource has, and routes for completion, move and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from todo_api.resources.cursors import digest, read_cursor
from todo_api.resources.items import update_item
from todo_api.resources.order import Move, move_item, place_parameters
from todo_api.resources.pages import Position
from todo_api.resources.responses import (
    change_response,
    collection_response,
    read_client_revisions,
)
from todo_api.resources.schemas import cursor_parameter
from todo_api.resources.types import check_cursor_text
from todo_api.resources.views import (
    add_collection_routes,
    add_item_routes,
    add_trash_routes,
    link_next_page,
)
from todo_api.services import database
from todo_api.tasks.fields import LABELS, TASK
from todo_api.tasks.labels import (
    LabelError,
    add_label,
    list_labels,
    remove_label,
    rename_label,
)
from todo_api.web.blueprints import Blueprint
from todo_api.web.conditional import read_precondition
from todo_api.web.fields import PAGE_LIMIT, ResponseSchema, StrictBoolean, limit_parameter
from todo_api.web.problems import invalid
from todo_api.web.responses import json_response

if TYPE_CHECKING:
    from flask import Response

    from todo_api.tasks.places import TaskStatements

LIST_ID, PARENT_ID = TASK.by_name["list_id"], TASK.by_name["parent_id"]
COMPLETED, COMPLETED_AT = TASK.by_name["completed"], TASK.by_name["completed_at"]

blueprint = Blueprint(
    "tasks", __name__, url_prefix="/api/<id:user_id>", description="The tasks of a user."
)
add_collection_routes(blueprint, TASK)
add_item_routes(blueprint, TASK)
add_trash_routes(
    blueprint,
    TASK,
    deletion="The tasks below it move to the trash, too.",
    restoration=(
        "The tasks that were deleted with it are restored, too. The task keeps its parent, and is "
        "in the list of the parent. If the parent is in the trash or has no room for it, "
        "`parent_id` becomes null. If the list is in the trash, the task moves to the Inbox."
    ),
)

places = cast("TaskStatements", TASK.statements)


class Completion(Schema):
    """Whether a task is completed."""

    completed = COMPLETED.type.request_field(
        load_default=True, metadata={"description": COMPLETED.description, "example": True}
    )
    completed_at = COMPLETED_AT.type.request_field(**COMPLETED_AT.options())
    subtasks = StrictBoolean(
        load_default=False,
        metadata={
            "description": "Whether to complete the open tasks below it, too.",
            "example": True,
        },
    )

    @validates_schema
    def refuse_open_subtasks(self, data: dict[str, Any], **_: Any) -> None:
        if data["subtasks"] and not data["completed"]:
            raise ValidationError("Needs completed: true.", "subtasks")


class LabelCount(ResponseSchema):
    """A label, and how many tasks have it."""

    name = fields.String(
        required=True,
        validate=validate.Length(1, LABELS.length),
        metadata={"description": "The label.", "example": "errand"},
    )
    tasks = fields.Integer(
        required=True,
        validate=validate.Range(1, 2**53 - 1),
        metadata={"description": "The number of tasks that have the label.", "example": 3},
    )


class LabelsQuery(Schema):
    """The query of the labels."""

    limit = limit_parameter("labels")
    cursor = cursor_parameter()


class LabelRename(Schema):
    """A label, and what replaces it."""

    # `from` is a keyword of Python, so the fields cannot be attributes of the class.
    class Meta:
        include = {  # noqa: RUF012
            "from": LABELS.label(
                required=True, metadata={"description": "The label.", "example": "errand"}
            ),
            "to": LABELS.label(
                required=True,
                allow_none=True,
                metadata={
                    "description": "The new label; null removes the label.",
                    "example": "shop",
                },
            ),
        }


class RenamedTasks(ResponseSchema):
    """The result of a rename."""

    tasks = fields.Integer(
        required=True,
        validate=validate.Range(0, 2**53 - 1),
        metadata={"description": "The number of tasks that were changed.", "example": 3},
    )


@blueprint.patch("/tasks/<id:task_id>/complete")
@blueprint.arguments(Completion, required=False)
@blueprint.response(200, TASK.schemas.item)
@blueprint.response(409)
@blueprint.conditional(TASK.schemas.item)
def complete_task(completion: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Complete a task, or reopen it with `completed: false`.

    Without a body, the task is completed. The request never toggles the state, so a repeated
    request does not undo the first one. With `subtasks: true`, the open tasks below the task are
    completed, too.
    """
    has_subtasks = completion.pop("subtasks")
    return change_response(
        update_item(
            database(),
            user_id,
            TASK,
            task_id,
            completion,
            read_precondition(),
            places.complete_tree(tuple(sorted(completion))) if has_subtasks else None,
        )
    )


class TaskMove(Move):
    """Where a task moves: into a list, below a task, and among its siblings."""

    omitted_from_example = ("before", "parent_id")

    list_id = LIST_ID.type.request_field(**LIST_ID.options())
    parent_id = PARENT_ID.type.request_field(**PARENT_ID.options())


@blueprint.post("/tasks/<id:task_id>/move")
@blueprint.arguments(TaskMove, required=False)
@blueprint.response(200, TASK.schemas.item)
@blueprint.response(409)
@blueprint.conditional(TASK.schemas.item)
def move_task(target: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Move a task to another place, into another list or below another task.

    The tasks below it follow. With `parent_id` and without `list_id`, the task moves into the list
    of the parent. Without `after` and `before`, it moves to the end; if it is the last one there
    already, it does not change. Only the moved task gets another `position`, unless there is no
    room between its new neighbours: then other siblings get new positions, too.
    """
    parameters = {
        "id": task_id,
        "parent_is_sent": "parent_id" in target,
        "list_is_sent": "list_id" in target,
        "new_parent_id": target.get("parent_id"),
        "new_list_id": target.get("list_id"),
        **place_parameters(target),
    }
    return change_response(
        move_item(
            database(),
            user_id,
            places.move,
            places.move_with_new_positions,
            read_precondition(),
            parameters,
        )
    )


label_in_path = blueprint.path_text(
    "label", LABELS.label(metadata={"description": "The label.", "example": "errand"})
)


@blueprint.put("/tasks/<id:task_id>/labels/<text:label>")
@label_in_path
@blueprint.response(200, TASK.schemas.item)
@blueprint.response(409)
@blueprint.conditional(TASK.schemas.item)
def add_label_to_task(user_id: UUID, task_id: UUID, label: str) -> Response:
    """Add one label to a task.

    The other labels stay, so two devices that add labels do not overwrite each other's. A task that
    has the label does not change. A slash in the label is `%2F`; the labels `.` and `..` cannot be
    in a path: use `labels` of the task.
    """
    try:
        result = add_label(database(), user_id, task_id, label, read_precondition())
    except LabelError as error:
        raise invalid([{"parameter": "label", "detail": str(error)}]) from None
    return change_response(result)


@blueprint.delete("/tasks/<id:task_id>/labels/<text:label>")
@label_in_path
@blueprint.response(200, TASK.schemas.item)
@blueprint.conditional(TASK.schemas.item)
def remove_label_from_task(user_id: UUID, task_id: UUID, label: str) -> Response:
    """Remove one label from a task.

    The other labels stay. A task that does not have the label does not change.
    """
    return change_response(remove_label(database(), user_id, task_id, label, read_precondition()))


@blueprint.get("/labels")
@blueprint.arguments(LabelsQuery, location="query")
@blueprint.response(200, {"type": "array", "maxItems": PAGE_LIMIT, "items": LabelCount})
@blueprint.response(304)
def list_labels_of_user(query: dict[str, Any], user_id: UUID) -> Response:
    """List the labels of the user's tasks, sorted by code point.

    A label exists while a task that is not in the trash has it.
    """
    query_digest = digest("labels", user_id.bytes)
    after = read_cursor(query.get("cursor"), query_digest, check_cursor_text)
    page = list_labels(
        database(),
        user_id,
        query["limit"],
        None if after is None else after.value,
        read_client_revisions(),
    )
    body = orjson.dumps([label._asdict() for label in page.labels])
    end = Position(page.labels[-1].name, LABEL_POSITION) if page.more else None
    return link_next_page(collection_response(page.revision, body), end, query_digest)


@blueprint.post("/labels/rename")
@blueprint.arguments(LabelRename)
@blueprint.response(200, RenamedTasks)
@blueprint.response(409)
def rename_label_of_user(rename: dict[str, Any], user_id: UUID) -> Response:
    """Rename a label in all tasks, or remove it.

    A task that has both labels keeps the new one. If a task has a label that differs from the new
    one only in case, the new one replaces it. Tasks in the trash do not change. If the request is
    sent again, no task has the old label, so nothing changes.
    """
    number = rename_label(database(), user_id, rename["from"], rename["to"])
    return json_response(orjson.dumps({"tasks": number}))


# A position in the list of labels has no id.
LABEL_POSITION = UUID(int=0)
