"""The contract, for tools and for people. The page needs no network but this server."""

from importlib.resources import files
from pathlib import Path

import flask_swagger_ui
import orjson
from flask import Blueprint, Response, send_from_directory

from todo_api.api import Api
from todo_api.document import JSON
from todo_api.messages import Answer

OURS = Path(str(files("todo_api") / "docs"))
SWAGGER_UI = Path(flask_swagger_ui.__file__).parent / "dist"
# This server, for everything; Swagger UI styles its elements and has images in its CSS.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
ASSETS = {
    "start.js": OURS,
    "swagger-ui.css": SWAGGER_UI,
    "swagger-ui-bundle.js": SWAGGER_UI,
    "favicon-32x32.png": SWAGGER_UI,
}


def docs(api: Api) -> Blueprint:
    """The routes that show the document of `api`, complete when this is called."""
    blueprint = Blueprint("docs", __name__)
    document = orjson.dumps(api.spec.to_dict())

    @blueprint.get("/openapi.json")
    def openapi() -> Response:
        return Answer(document, 200, {"Content-Type": JSON})

    @blueprint.get("/docs")
    def page() -> Response:
        response = send_from_directory(OURS, "index.html")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    # One route for each asset: a name that is not here is a path that is not there.
    for name, folder in ASSETS.items():
        blueprint.add_url_rule(
            f"/docs/{name}",
            endpoint=name.replace(".", "-"),
            view_func=send_from_directory,
            defaults={"directory": folder, "path": name},
        )
    return blueprint
