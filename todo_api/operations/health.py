"""Probes of liveness and readiness."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from flask import Response
from marshmallow import fields, validate
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, UndefinedTable
from sqlalchemy import select

from todo_api.db.schema_version import SCHEMA_VERSION
from todo_api.db.statement import compiled
from todo_api.db.tables import alembic_version
from todo_api.services import database
from todo_api.web.blueprints import Blueprint
from todo_api.web.fields import ResponseSchema
from todo_api.web.problems import unavailable
from todo_api.web.responses import json_response

if TYPE_CHECKING:
    from todo_api.db.database import Database

NIL = UUID(int=0)

# Raised if the tables, the role `todo_app`, or the right to use this role are missing.
NOT_READY = (UndefinedTable, InsufficientPrivilege, InvalidParameterValue)

FIND_SCHEMA_VERSION = compiled(select(alembic_version.c.version_num))

blueprint = Blueprint(
    "operations", __name__, requires_token=False, description="The state of the service."
)


class Status(ResponseSchema):
    """The state of the process or of the service."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata={"example": "ok"})


@blueprint.get("/livez")
@blueprint.response(200, Status)
def livez() -> Response:
    """Return 200 if the process responds (liveness).

    The check does not use the database, because a supervisor restarts a process that fails it.
    """
    return ok_response()


@blueprint.get("/health")
@blueprint.response(200, Status)
@blueprint.response(503)
def health() -> Response:
    """Return 200 if the service can serve requests (readiness).

    The database must respond and have all migrations that this version needs; otherwise 503.
    """
    try:
        version = find_schema_version(database())
    except NOT_READY:
        version = None
    if version is None or version < SCHEMA_VERSION:
        raise unavailable("Migrate the database: it lacks migrations that this version needs.")
    return ok_response()


def find_schema_version(database: Database) -> str | None:
    """Return the number of the database's latest migration, read with the role of requests."""
    row = database.one(NIL, FIND_SCHEMA_VERSION)
    return row[0] if row else None


def ok_response() -> Response:
    return json_response(b'{"status":"ok"}')
