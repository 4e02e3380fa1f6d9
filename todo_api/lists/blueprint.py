"""The routes of lists: those that each resource has, and routes that also change tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from marshmallow import Schema, fields, validate

from todo_api.lists.fields import LIST
from todo_api.lists.statements import MOVE, MOVE_WITH_NEW_POSITIONS, ListChanges
from todo_api.resources.items import change
from todo_api.resources.order import Move, move_item, place_parameters
from todo_api.resources.responses import change_response
from todo_api.resources.views import add_collection_routes, add_item_routes
from todo_api.services import database
from todo_api.web.blueprints import Blueprint
from todo_api.web.conditional import read_precondition
from todo_api.web.fields import ResponseSchema
from todo_api.web.responses import json_response

if TYPE_CHECKING:
    from uuid import UUID

    from flask import Response

    from todo_api.resources.resource import Resource


class ListDeletion(Schema):
    """The query of the deletion of a list."""

    tasks = fields.String(
        load_default="trash",
        validate=validate.OneOf(["trash", "inbox"], error="Must be trash or inbox."),
        metadata={
            "description": "Where the tasks of the list move: to the trash or to the Inbox.",
            "example": "inbox",
        },
    )


class DeletedTasks(ResponseSchema):
    """The result of the deletion of a list."""

    tasks = fields.Integer(
        required=True,
        validate=validate.Range(0, 2**53 - 1),
        metadata={
            "description": "The number of tasks that moved to the trash or to the Inbox.",
            "example": 7,
        },
    )


def lists_blueprint(tasks: Resource) -> Blueprint:
    """Return the routes of lists. `tasks` is the resource whose rows lists contain."""
    blueprint = Blueprint(
        "lists", __name__, url_prefix="/api/<id:user_id>", description="The lists of a user."
    )
    add_collection_routes(blueprint, LIST)
    add_item_routes(blueprint, LIST)
    changes = ListChanges(tasks)

    @blueprint.delete("/lists/<id:list_id>", endpoint="delete_list")
    @blueprint.arguments(ListDeletion, location="query")
    @blueprint.response(200, DeletedTasks)
    @blueprint.conditional(LIST.schemas.item)
    def delete(query: dict[str, Any], user_id: UUID, list_id: UUID) -> Response:
        """Delete a list: move it and its tasks to the trash.

        If the list is restored, the tasks that were deleted with it are restored, too. With
        `tasks=inbox`, the tasks move to the Inbox instead. While the list is in the trash, the
        response to the same request is 200 again, with the number 0.
        """
        is_inbox = query["tasks"] == "inbox"
        statements = changes.delete_to_inbox if is_inbox else changes.delete
        result = change(
            database(), user_id, statements, read_precondition(), lambda _: {"id": list_id}
        )
        change_response(result)
        return json_response(orjson.dumps({"tasks": result.followed}))

    @blueprint.post("/lists/<id:list_id>/move", endpoint="move_list")
    @blueprint.arguments(Move, required=False)
    @blueprint.response(200, LIST.schemas.item)
    @blueprint.response(409)
    @blueprint.conditional(LIST.schemas.item)
    def move(place: dict[str, Any], user_id: UUID, list_id: UUID) -> Response:
        """Move a list to another place in the order of lists.

        Without `after` and `before`, the list moves to the end. If it is in this place already, it
        does not change.
        """
        parameters = {"id": list_id, **place_parameters(place)}
        return change_response(
            move_item(
                database(),
                user_id,
                MOVE,
                MOVE_WITH_NEW_POSITIONS,
                read_precondition(),
                parameters,
            )
        )

    @blueprint.post("/lists/<id:list_id>/restore", endpoint="restore_list")
    @blueprint.response(200, LIST.schemas.item)
    @blueprint.response(409)
    @blueprint.conditional(LIST.schemas.item)
    def restore(user_id: UUID, list_id: UUID) -> Response:
        """Take a list out of the trash, with the tasks that were deleted with it.

        A list that is not in the trash does not change.
        """
        return change_response(
            change(
                database(),
                user_id,
                changes.restore,
                read_precondition(),
                lambda _: {"id": list_id},
                even_deleted=True,
            )
        )

    return blueprint
