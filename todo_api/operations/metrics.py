"""The route of the metrics for Prometheus, which is not in the OpenAPI document."""

from flask import Response

from todo_api.metrics import CONTENT_TYPE
from todo_api.services import current_services
from todo_api.web.blueprints import Blueprint
from todo_api.web.responses import BytesResponse

blueprint = Blueprint("metrics", __name__, requires_token=False)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the metrics of all workers in Prometheus' text format."""
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    return BytesResponse(current_services().metrics.exposition(), 200, headers)
