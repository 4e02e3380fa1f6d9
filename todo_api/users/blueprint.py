"""Routes that tell the user and expiry of a token, and that erase a user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import orjson
from flask import Response

from todo_api.resources.views import add_feed_routes
from todo_api.services import database
from todo_api.users.schemas import Session
from todo_api.users.statements import delete_user
from todo_api.web.blueprints import Blueprint
from todo_api.web.problems import not_found
from todo_api.web.requests import current_request
from todo_api.web.responses import json_response, no_content
from todo_api.web.validation import SESSION

if TYPE_CHECKING:
    from todo_api.resources.resource import Resource

session = Blueprint("session", __name__, description="The user and expiry of a token.")


@session.get(SESSION)
@session.response(200, Session)
@session.response(404)
def get_session() -> Response:
    """Return the user and expiry of the token.

    If the server requires no tokens (`AUTH_MODE=none`), the response is 404.
    """
    identity = current_request().identity
    if identity is None:
        raise not_found()
    body = {
        "user_id": identity.user_id,
        "subject": identity.subject,
        "expires_at": datetime.fromtimestamp(identity.expires_at, UTC),
    }
    return json_response(orjson.dumps(body, option=orjson.OPT_UTC_Z))


def users_blueprint(resources: tuple[Resource, ...]) -> Blueprint:
    """Return the routes for a user as a whole: changes, trash and erasure."""
    users = Blueprint(
        "users",
        __name__,
        url_prefix="/api/<id:user_id>",
        description="A user, and everything that the user owns.",
    )
    add_feed_routes(users, resources)

    @users.delete("")
    @users.response(204)
    def remove_user(user_id: UUID) -> Response:
        """Erase the user and everything that the user owns.

        The data are removed immediately and for good. If there are no data of the user, the
        response is 204, too, so the request can be repeated. If a task is created later for the
        same user id, the user starts without any data.
        """
        delete_user(database(), user_id, resources)
        return no_content()

    return users
