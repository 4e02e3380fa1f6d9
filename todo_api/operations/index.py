"""The root path: the name and version of the API, and the paths of its documentation."""

from __future__ import annotations

import orjson
from flask import Response
from marshmallow import fields, validate
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from todo_api.web.blueprints import Blueprint
from todo_api.web.fields import ResponseSchema
from todo_api.web.openapi.settings import OPENAPI
from todo_api.web.requests import current_request
from todo_api.web.responses import FOUND, HTML, JSON, OK, PUBLIC, BytesResponse

blueprint = Blueprint(
    "index", __name__, requires_token=False, description="The paths of the documentation."
)

HEADERS = {"Cache-Control": PUBLIC, "Vary": "Accept"}

INDEX: dict[str, str] = {
    "name": OPENAPI["API_TITLE"],
    "version": OPENAPI["API_VERSION"],
    "docs": "/docs",
    "openapi": "/openapi.json",
}


def text(description: str, name: str) -> fields.String:
    return fields.String(
        required=True,
        validate=validate.Length(1, 100),
        metadata={"description": description, "example": INDEX[name]},
    )


class Index(ResponseSchema):
    """The name and version of the API, and the paths of its documentation."""

    name = text("The name of the API.", "name")
    version = text("The version of the server.", "version")
    docs = text("The path of the documentation for browsers.", "docs")
    openapi = text("The path of the OpenAPI document.", "openapi")


@blueprint.get("/")
@blueprint.offers(JSON, HTML)
@blueprint.response(OK, Index)
@blueprint.response(FOUND)
def get_index() -> Response:
    """Return the name and version of the API, and the paths of its documentation.

    A client that prefers HTML, such as a browser, is redirected to `/docs`.
    """
    accepted = parse_accept_header(current_request().header("Accept"), MIMEAccept)
    if accepted.best_match([JSON, HTML]) == HTML:
        return BytesResponse(b"", FOUND, HEADERS | {"Location": INDEX["docs"]})
    return BytesResponse(orjson.dumps(INDEX), OK, HEADERS | {"Content-Type": JSON})
