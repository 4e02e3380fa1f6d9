"""The session of a token, and the erasure of a user."""

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

session = Blueprint("session", __name__, description="Who a token is for.")


@session.get(SESSION)
@session.response(200, Session)
@session.response(404)
def get_session() -> Response:
    """Tell which user the token is for, and until when.

    Where the server asks for no tokens, there is no session: 404.
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
    """Return the routes of a user, who owns rows of these resources."""
    users = Blueprint(
        "users", __name__, url_prefix="/api/<id:user_id>", description="A user, and all of theirs."
    )
    add_feed_routes(users, resources)

    @users.delete("")
    @users.response(204)
    def remove_user(user_id: UUID) -> Response:
        """Erase the user and everything of theirs.

        It is done at once, and for good. The next task that is created under the same id begins
        anew. Where there is nothing of the user, the answer is 204, too: repeat it when in doubt.
        """
        delete_user(database(), user_id, resources)
        return no_content()

    return users
