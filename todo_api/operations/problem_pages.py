"""A page for each kind of problem: HTML for browsers, plain text for other clients."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from flask import Response, render_template

from todo_api.operations.docs import PAGE_FOLDER
from todo_api.web.blueprints import Blueprint
from todo_api.web.fields import REQUEST_ID
from todo_api.web.openapi.schemas import example_of
from todo_api.web.problem_kinds import KIND_OF_NAME, ProblemKind
from todo_api.web.problems import example_problem
from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from marshmallow import Schema

HTML = "text/html"
PLAIN_TEXT = "text/plain"

# A page loads a stylesheet and an icon from this server, and nothing else.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

HEADERS = {
    "Cache-Control": "public, max-age=3600",
    "Content-Security-Policy": POLICY,
    "Vary": "Accept",
}


def problem_pages_blueprint(item: type[Schema]) -> Blueprint:
    """Return the routes of the pages. `item` is the schema of the resource in the examples."""
    blueprint = Blueprint(
        "problem_pages", __name__, requires_token=False, template_folder=PAGE_FOLDER
    )
    example_resource = orjson.dumps(example_of(item))
    # One route for each page, so that any other name is a 404.
    for kind in KIND_OF_NAME.values():
        blueprint.add_url_rule(
            kind.type,
            endpoint=kind.name,
            view_func=partial(problem_page, kind, example_text(kind, example_resource)),
        )
    return blueprint


def example_text(kind: ProblemKind, example_resource: bytes) -> str:
    """Return the body of the kind's example response, indented."""
    body = orjson.loads(example_problem(kind, example_resource).body(REQUEST_ID))
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def problem_page(kind: ProblemKind, example: str) -> Response:
    """Return the page of the kind, as HTML if the client prefers HTML to plain text."""
    request = current_request()
    media_type = request.accept_mimetypes.best_match([PLAIN_TEXT, HTML], default=PLAIN_TEXT)
    # Flask escapes the values in a template whose name ends with .html.
    template = "problem.html" if media_type == HTML else "problem.txt"
    text = render_template(template, kind=kind, example=example)
    response = Response(text, HTTPStatus.OK, HEADERS, mimetype=media_type)
    response.add_etag()
    response.make_conditional(request)
    return response
