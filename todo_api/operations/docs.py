"""The OpenAPI document, and a page that shows the document and loads nothing from other servers."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import flask_swagger_ui
import orjson
from flask import Response, send_from_directory

from todo_api.web.blueprints import Blueprint
from todo_api.web.responses import JSON, BytesResponse

if TYPE_CHECKING:
    from todo_api.web.blueprints import Api

PAGE_FOLDER = Path(str(files("todo_api") / "docs"))

SWAGGER_UI_FOLDER = Path(flask_swagger_ui.__file__).parent / "dist"

# The page loads from this server only. Swagger UI needs inline styles, and has images in its CSS.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

ASSETS = {
    "start.js": PAGE_FOLDER,
    "problem.css": PAGE_FOLDER,
    "swagger-ui.css": SWAGGER_UI_FOLDER,
    "swagger-ui-bundle.js": SWAGGER_UI_FOLDER,
    "favicon-32x32.png": SWAGGER_UI_FOLDER,
}


def docs_blueprint(api: Api) -> Blueprint:
    """Return the routes of document and page. Call this after `api` has all documented routes."""
    blueprint = Blueprint("docs", __name__, requires_token=False)
    document = orjson.dumps(api.spec.to_dict())

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return BytesResponse(document, 200, {"Content-Type": JSON})

    @blueprint.get("/docs")
    def page() -> Response:
        response = send_from_directory(PAGE_FOLDER, "index.html")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    # One route for each file, so that any other name is a 404.
    for name, folder in ASSETS.items():
        blueprint.add_url_rule(
            f"/docs/{name}",
            endpoint=name.replace(".", "-"),
            view_func=send_from_directory,
            defaults={"directory": folder, "path": name},
        )
    return blueprint
