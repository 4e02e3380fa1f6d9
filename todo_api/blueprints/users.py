"""Who a token is for, and how a user leaves."""

from datetime import UTC, datetime
from uuid import UUID

import orjson
from flask import Response

from todo_api.api import Blueprint, database, no_content
from todo_api.document import JSON
from todo_api.errors import not_found
from todo_api.messages import Answer, current_request
from todo_api.schemas import Session
from todo_api.statements.users import delete_user

session = Blueprint("session", __name__, description="Who a token is for.")
users = Blueprint(
    "users", __name__, url_prefix="/api/<id:user_id>", description="A user, and all of theirs."
)


@session.get("/api/session")
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
    fields = {"Content-Type": JSON, "Cache-Control": "no-store"}
    return Answer(orjson.dumps(body, option=orjson.OPT_UTC_Z), 200, fields)


@users.delete("")
@users.response(204)
def remove_user(user_id: UUID) -> Response:
    """Erase the user and every task of theirs.

    It is done at once, and for good. The next task that is created under the same id begins anew.
    Of whom there is nothing, nothing is erased, and that is 204, too: repeat it when in doubt.
    """
    delete_user(database(), user_id)
    return no_content()
