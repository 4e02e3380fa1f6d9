"""Routes for a user as a whole, and for the user and expiry of a token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from flask import Response

from todo_api.resources.queries import remember_zone
from todo_api.resources.time_zones import DEFAULT_TIME_ZONE
from todo_api.resources.views import add_feed_routes
from todo_api.services import current_services, database
from todo_api.users.schemas import Session, UserPatch, UserState
from todo_api.users.statements import MAX_LISTS, erase_user, find_user, set_time_zone
from todo_api.web.blueprints import Blueprint
from todo_api.web.problems import not_found
from todo_api.web.requests import current_request
from todo_api.web.responses import MERGE_PATCH, json_response, no_content
from todo_api.web.validation import SESSION_PATH

if TYPE_CHECKING:
    from todo_api.resources.resource import Resource
    from todo_api.users.statements import User

# RFC 3339 in UTC, to the microsecond.
TIMESTAMP = "%Y-%m-%dT%H:%M:%S.%fZ"

# In the API, a session is the user and expiry of a token. The server stores nothing about it.
token_blueprint = Blueprint("session", __name__, description="The user and expiry of a token.")


@token_blueprint.get(SESSION_PATH)
@token_blueprint.response(200, Session)
@token_blueprint.response(404)
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


def user_response(user_id: UUID, user: User) -> Response:
    """Return the response with a user's state. Clients must not store it (`no-store`)."""
    created_at = user.created_at and user.created_at.astimezone(UTC).strftime(TIMESTAMP)
    settings = current_services().settings
    usage = {
        "tasks": (settings.max_tasks, user.tasks),
        "tasks_with_trash": (2 * settings.max_tasks, user.tasks + user.trashed_tasks),
        "lists": (MAX_LISTS, user.lists),
        "lists_with_trash": (2 * MAX_LISTS, user.lists + user.trashed_lists),
        "bytes": (settings.max_bytes, user.bytes),
    }
    body = {
        "user_id": user_id,
        "revision": user.revision,
        "created_at": created_at,
        "time_zone": user.time_zone,
        # Until a renewal has counted the rows of the version before, a counter can be negative.
        "limits": {
            name: {"limit": limit, "used": max(0, used)} for name, (limit, used) in usage.items()
        },
    }
    return json_response(orjson.dumps(body))


def users_blueprint(resources: tuple[Resource, ...]) -> Blueprint:
    """Return the routes for a user as a whole: time zone, changes, trash and erasure."""
    users = Blueprint(
        "users",
        __name__,
        url_prefix="/api/<id:user_id>",
        description="A user, and everything that the user owns.",
    )
    add_feed_routes(users, resources)

    @users.get("", endpoint="get_user")
    @users.response(200, UserState)
    def get(user_id: UUID) -> Response:
        """Read the user's time zone, revision and limits.

        A user who has never changed anything has the revision 0.
        """
        return user_response(user_id, find_user(database(), user_id))

    @users.patch("", endpoint="patch_user")
    @users.arguments(UserPatch, content_type=MERGE_PATCH)
    @users.response(200, UserState)
    def patch(changes: dict[str, Any], user_id: UUID) -> Response:
        """Set the user's time zone.

        The filters `due=today`, `due=overdue`, `due=upcoming` and `started` depend on it, unless
        the request has the parameter `time_zone`. The body is a JSON merge patch (RFC 7396).
        """
        if "time_zone" not in changes:
            return user_response(user_id, find_user(database(), user_id))
        time_zone = changes["time_zone"] or DEFAULT_TIME_ZONE
        user = set_time_zone(database(), user_id, time_zone)
        remember_zone(user_id, user.time_zone)
        return user_response(user_id, user)

    @users.delete("", endpoint="erase_user")
    @users.response(204)
    def erase(user_id: UUID) -> Response:
        """Erase the user and everything that the user owns.

        The data are erased immediately and for good. If there are no data of the user, the
        response is 204, too, so the request can be repeated. If a task is created later for the
        same user id, the user starts without any data.
        """
        erase_user(database(), user_id, resources)
        return no_content()

    return users
