"""What a Prometheus server asks. It is no part of the document: clients have no use for it."""

from flask import Blueprint, Response

from todo_api.metrics import CONTENT_TYPE, exposition

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    response = Response(exposition(), content_type=CONTENT_TYPE)
    response.headers["Cache-Control"] = "no-store"
    return response
