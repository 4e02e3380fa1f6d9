"""The routes of tasks: the routes that each resource has, and a route to complete a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marshmallow import Schema

from todo_api.resources.items import update_item
from todo_api.resources.responses import change_response
from todo_api.resources.views import add_collection_routes, add_item_routes
from todo_api.services import database
from todo_api.tasks.fields import TASK
from todo_api.web.blueprints import Blueprint
from todo_api.web.conditional import read_precondition

if TYPE_CHECKING:
    from uuid import UUID

    from flask import Response

COMPLETED = TASK.by_name["completed"]

blueprint = Blueprint(
    "tasks", __name__, url_prefix="/api/<id:user_id>", description="The tasks of a user."
)
add_collection_routes(blueprint, TASK)
add_item_routes(blueprint, TASK)


class Completion(Schema):
    """Whether a task is done."""

    completed = COMPLETED.type.request_field(
        load_default=True, metadata={"description": COMPLETED.description, "example": True}
    )


@blueprint.patch("/tasks/<id:task_id>/complete")
@blueprint.arguments(Completion, required=False)
@blueprint.response(200, TASK.schemas.item)
@blueprint.conditional(TASK.schemas.item)
def complete_task(completion: dict[str, Any], user_id: UUID, task_id: UUID) -> Response:
    """Set whether a task is done. Without a body, the task is marked as done.

    The request never toggles the state, so a repeated request does not undo the first one.
    """
    return change_response(
        update_item(database(), user_id, TASK, task_id, completion, read_precondition())
    )
