"""What probes ask: whether the process answers, and whether it can serve."""

from flask import Response
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, UndefinedTable

from todo_api.api import Blueprint, database
from todo_api.document import JSON
from todo_api.errors import unavailable
from todo_api.messages import Answer
from todo_api.schemas import Status
from todo_api.statements.operations import find_schema_version
from todo_api.tables import SCHEMA_VERSION

# There is no schema, no role of requests, or no leave to use it.
NOT_READY = (UndefinedTable, InsufficientPrivilege, InvalidParameterValue)

blueprint = Blueprint("operations", __name__, description="Whether the service works.")


@blueprint.get("/livez")
@blueprint.response(200, Status)
def livez() -> Response:
    """Tell that the process answers.

    The database is not asked: for what starts a process anew when it hangs.
    """
    return ok()


@blueprint.get("/health")
@blueprint.response(200, Status)
@blueprint.response(503)
def health() -> Response:
    """Tell whether requests can be served.

    The database answers, and its schema holds every migration that this version needs.
    """
    try:
        version = find_schema_version(database())
    except NOT_READY:
        version = None
    if version is None or version < SCHEMA_VERSION:
        raise unavailable("The database lacks migrations that this version needs.")
    return ok()


def ok() -> Response:
    return Answer(b'{"status":"ok"}', 200, {"Content-Type": JSON, "Cache-Control": "no-store"})
