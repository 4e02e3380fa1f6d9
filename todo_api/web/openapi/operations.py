"""Operation objects of the OpenAPI document, complete with headers, errors and examples."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from todo_api.web.openapi.components import EVERY_HEADER, error_component
from todo_api.web.openapi.schemas import array_object, example_of
from todo_api.web.requests import READS
from todo_api.web.responses import CREATED, FOUND, JSON, NO_CONTENT, NOT_MODIFIED, OK

if TYPE_CHECKING:
    from todo_api.web.operation import Operation


def operation_object(
    operation: Operation, *, name: str, method: str, rule: str, requires_token: bool
) -> dict[str, Any]:
    """Return the operation object of a view, with the headers and errors of the operation.

    `name` is the name of the view, and `rule` is Flask's rule. The result contains names of
    components (components.py) and marshmallow schemas, which apispec replaces by references.
    """
    is_of_user = "user_id" in rule
    responses: dict[int, Any] = {
        status: success_response(operation, status, schema, is_of_user=is_of_user)
        for status, schema in operation.responses.items()
        if status < HTTPStatus.BAD_REQUEST
    }
    errors = error_statuses(operation, method, is_of_user=is_of_user, requires_token=requires_token)
    responses |= {status: error_component(status, operation.current_schema) for status in errors}
    query = [{"in": "query", "schema": operation.query}] if operation.query else []
    document = {
        "operationId": camel_case(name),
        "parameters": [*query, *request_headers(operation)],
        "responses": dict(sorted(responses.items())),
        "security": [{"bearer": []}] if requires_token else [],
    }
    if operation.body:
        document["requestBody"] = request_body(operation)
    return document


def camel_case(name: str) -> str:
    """Return a Python name in camel case, as generated clients spell it: `listTasks`."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)


def request_headers(operation: Operation) -> list[str]:
    """Return the components of the request headers that the operation reads."""
    if operation.is_idempotent:
        return ["Idempotency-Key"]
    if NOT_MODIFIED in operation.responses:
        return ["If-None-Match"]
    return ["If-Match", "If-None-Match"] if operation.is_conditional else []


def request_body(operation: Operation) -> dict[str, Any]:
    """Return the request body object."""
    content = {"schema": operation.body, "example": example_of(operation.body)}
    return {
        "required": operation.is_body_required,
        "content": {media_type: dict(content) for media_type in operation.media_types},
    }


def success_response(
    operation: Operation, status: int, schema: Any, *, is_of_user: bool
) -> dict[str, Any]:
    """Return the response object of a status below 400."""
    is_paged = "cursor" in operation.query_names
    headers = [
        *EVERY_HEADER,
        *(["ETag"] if is_of_user and status != NO_CONTENT else ()),
        *(["Location"] if status in (CREATED, FOUND) else ()),
        *(["Idempotent-Replayed"] if operation.is_idempotent and status == CREATED else ()),
        *(["Link"] if is_paged and status == OK else ()),
    ]
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "headers": {name: name for name in headers},
    }
    if schema is not None:
        response["content"] = {
            JSON: {"schema": array_object(schema), "example": example_of(schema)}
        }
    return response


def error_statuses(
    operation: Operation, method: str, *, is_of_user: bool, requires_token: bool
) -> set[int]:
    """Return the statuses of 400 and above that the operation can respond with."""
    reads_etags = operation.is_conditional or NOT_MODIFIED in operation.responses
    return {
        *(status for status in operation.responses if status >= HTTPStatus.BAD_REQUEST),
        *(406, 422, 500),
        *((400,) if reads_etags or operation.is_idempotent else ()),
        *((412, 428) if operation.is_conditional else ()),
        *((400, 413) if method not in READS else ()),
        *((414,) if operation.query else ()),
        *((415,) if operation.body else ()),
        *((404, 503) if is_of_user else ()),
        *((401, 503) if requires_token else ()),
    }
