"""Respond to OPTIONS: the methods of a path, and the media types of its PATCH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from todo_api.web.operation import operation_of
from todo_api.web.requests import current_request
from todo_api.web.responses import OK, BytesResponse

if TYPE_CHECKING:
    from flask import Flask


def options_response(app: Flask) -> BytesResponse:
    """Return an empty 200 with `Allow`, and with `Accept-Patch` if there is a PATCH (RFC 5789)."""
    adapter = app.create_url_adapter(current_request())
    methods = set(adapter.allowed_methods()) if adapter else set()
    headers = {"Allow": ", ".join(sorted(methods))}
    if adapter and "PATCH" in methods:
        endpoint, _ = adapter.match(method="PATCH")
        headers["Accept-Patch"] = ", ".join(operation_of(app.view_functions[endpoint]).media_types)
    return BytesResponse(b"", OK, headers)
