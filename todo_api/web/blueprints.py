"""flask-smorest, fitted to the contract: strict bodies and queries, every response documented."""

from __future__ import annotations

from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import flask_smorest
from flask import Flask, Response

from todo_api.web.body import MAX_BODY
from todo_api.web.openapi import HEADERS, REQUEST_HEADERS, Kind, Rules, Shapes, complete, refusals
from todo_api.web.requests import READS
from todo_api.web.validation import IdConverter, load_body, load_query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marshmallow import Schema


View = TypeVar("View", bound="Callable[..., Response]")


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose operations document all responses, errors included.

    Its routes need a token unless `requires_token` is False.
    """

    def __init__(self, *args: Any, requires_token: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_token = requires_token
        self._prepare_doc_cbks.append(self._prepare_operation_doc)

    def arguments(
        self, schema: type[Schema], *, location: str = "json", **kwargs: Any
    ) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Document what a view takes, and give it that as the schema has it.

        webargs, of which flask-smorest makes use, takes longer to get there than all else.
        """
        instance = schema()
        document = super().arguments(instance, location=location, **kwargs)
        load = load_query if location == "query" else load_body

        def documented(view: Callable[..., Response]) -> Callable[..., Response]:
            @wraps(view)
            def given(**path: Any) -> Response:
                return view(load(instance), **path)

            given._apidoc = document(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001
            return given

        return documented

    def response(self, *args: Any, **kwargs: Any) -> Callable[[View], View]:
        """Document an answer, no more: a view returns its Response whole."""
        document = super().response(*args, **kwargs)

        def documented(view: View) -> View:
            view._apidoc = document(view)._apidoc  # type: ignore[attr-defined]  # noqa: SLF001
            return view

        return documented

    def conditional(self, view: View) -> View:
        """Document that the view calls `read_precondition`."""
        return marked(view, "conditional")

    def idempotent(self, view: View) -> View:
        """Document that the view calls `read_idempotent_request`."""
        return marked(view, "idempotent")

    def _prepare_operation_doc(
        self, doc: dict[str, Any], doc_info: dict[str, Any], *, method: str, **_: Any
    ) -> dict[str, Any]:
        queries = doc.get("parameters", ())
        kind = Kind(
            of_user="user_id" in (self.url_prefix or ""),
            secured=self.requires_token,
            conditional="conditional" in doc_info,
            idempotent="idempotent" in doc_info,
            changes=method.upper() not in READS,
            body="requestBody" in doc,
            paged=any("cursor" in query["schema"].fields for query in queries),
        )
        return complete(doc, kind)


def marked(view: View, mark: str) -> View:
    """The view, with a mark in what flask-smorest documents of it."""
    view._apidoc = deepcopy(getattr(view, "_apidoc", {})) | {mark: True}  # type: ignore[attr-defined]  # noqa: SLF001
    return view


class Api(flask_smorest.Api):
    """The API's document. `items` are the schemas of what a 412 can hold."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask, items: Sequence[type[Schema]]) -> None:
        self._items = items
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
        app.url_map.converters["id"] = IdConverter
        # A path is what it says: no redirect to one with fewer slashes.
        app.url_map.merge_slashes = False
        plugins = {"flask_plugin": Rules(), "marshmallow_plugin": Shapes()}
        super().__init__(app, spec_kwargs=plugins)

    def _register_responses(self) -> None:
        components = self.spec.components
        for name, header in HEADERS.items():
            components.header(name, deepcopy(header), lazy=True)
        for name, parameter in REQUEST_HEADERS.items():
            components.parameter(name, "header", deepcopy(parameter), lazy=True)
        for name, response in refusals(self._items).items():
            components.response(name, response, lazy=True)

    def _register_etag_headers(self) -> None:
        """Not needed: openapi.HEADERS has ETag."""

    def _register_pagination_header(self) -> None:
        """Not needed: openapi.HEADERS has Link."""

    def _register_error_handlers(self) -> None:
        """Not needed: errors.py has them."""
