"""What a Prometheus server asks. It is no part of the document: clients have no use for it."""

from flask import Blueprint, Response

from todo_api.messages import Answer
from todo_api.metrics import CONTENT_TYPE, exposition

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    fields = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    return Answer(exposition(), 200, fields)
