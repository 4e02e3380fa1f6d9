"""flask-smorest's Blueprint and Api, with strict requests and fully documented operations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import flask_smorest
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask, Response

from todo_api.web.body import MAX_BODY
from todo_api.web.openapi.components import add_components
from todo_api.web.openapi.operations import operation_object
from todo_api.web.openapi.paths import path_parameters
from todo_api.web.openapi.schemas import field_attributes, schema_name
from todo_api.web.operation import operation_of
from todo_api.web.responses import JSON
from todo_api.web.validation import (
    IdConverter,
    TextConverter,
    load_body,
    load_path_text,
    load_query,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marshmallow import Schema
    from marshmallow.fields import Field

View = TypeVar("View", bound="Callable[..., Response]")


def declare(view: View, **changes: Any) -> View:
    """Change the operation that the view declares; return the view.

    The operation is an attribute of the function, so `functools.wraps` copies it to wrappers.
    """
    view.operation = replace(operation_of(view), **changes)  # type: ignore[attr-defined]
    return view


class Blueprint(flask_smorest.Blueprint):
    """A blueprint whose views declare their operations, and return complete responses.

    Its routes need a token unless `requires_token` is False.
    """

    def __init__(self, *args: Any, requires_token: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_token = requires_token

    def arguments(
        self,
        schema: type[Schema],
        *,
        location: str = "json",
        content_type: str = JSON,
        required: bool = True,
    ) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Declare the view's body or query. The view gets the values that the schema loads.

        flask-smorest would load them with webargs, which takes longer than the rest of the view.
        """
        instance = schema()
        declared: dict[str, Any]
        if location == "query":
            load = load_query
            declared = {"query": instance}
        else:
            load = load_body
            declared = {
                "body": instance,
                "media_types": tuple(dict.fromkeys((content_type, JSON))),
                "is_body_required": required,
            }

        def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
            @wraps(view)
            def load_arguments(**ids: Any) -> Response:
                return view(load(instance), **ids)

            return declare(load_arguments, **declared)

        return decorate

    def path_text(
        self, name: str, text: Field[Any]
    ) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Declare a path parameter that is no id. The view gets the value that the field loads."""

        def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
            @wraps(view)
            def load_text(*args: Any, **arguments: Any) -> Response:
                loaded = {name: load_path_text(name, text, arguments[name])}
                return view(*args, **arguments | loaded)

            return declare(load_text, path_texts={**operation_of(view).path_texts, name: text})

        return decorate

    def response(self, status: int, schema: Any = None) -> Callable[[View], View]:
        """Declare a response. The schema is for the OpenAPI document only."""

        def decorate(view: View) -> View:
            return declare(view, responses={**operation_of(view).responses, status: schema})

        return decorate

    def offers(self, *media_types: str) -> Callable[[View], View]:
        """Declare the media types of the successful responses. The default is JSON only."""

        def decorate(view: View) -> View:
            return declare(view, offers=media_types)

        return decorate

    def conditional(self, current_schema: type[Schema]) -> Callable[[View], View]:
        """Declare that the view calls `read_precondition`.

        `current_schema` is the schema of the member `current`, which a 412 response has.
        """
        return partial(declare, current_schema=current_schema)

    def idempotent(self, view: View) -> View:
        """Declare that the view calls `read_idempotent_request`."""
        return declare(view, is_idempotent=True)

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Any = None,
        provide_automatic_options: bool | None = None,  # noqa: FBT001  Flask's
        **options: Any,
    ) -> None:
        """Add a route. Its operation is documented if the view declares a response."""
        operation = operation_of(view_func)
        if not operation.is_documented:
            super().add_url_rule(rule, endpoint, view_func, provide_automatic_options, **options)
            return
        name = endpoint or view_func.__name__
        full_rule = (self.url_prefix or "") + rule
        (method,) = options["methods"]
        add_documentation = self.doc(
            **operation_object(
                operation,
                name=name,
                method=method,
                rule=full_rule,
                requires_token=self.requires_token,
            )
        )
        options["parameters"] = path_parameters(full_rule, operation.path_texts)
        super().add_url_rule(
            rule, name, add_documentation(view_func), provide_automatic_options, **options
        )
        # Flask calls the view itself: the wrapper from `doc` would cost 2 us per request.
        self.record(lambda state: state.app.endpoint(f"{self.name}.{name}")(view_func))


class Api(flask_smorest.Api):
    """The API's OpenAPI document. `items` are the schemas of the resources.

    flask-smorest also registers an error handler for HTTPException: `register_error_handlers`,
    called later, replaces it.
    """

    # Each operation documents each of its error statuses.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask, items: Sequence[type[Schema]]) -> None:
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
        app.url_map.converters |= {"id": IdConverter, "text": TextConverter}
        # No redirect from a path with `//` to the path with `/`.
        app.url_map.merge_slashes = False
        plugin = MarshmallowPlugin(schema_name_resolver=schema_name)  # type: ignore[arg-type]
        super().__init__(app, spec_kwargs={"marshmallow_plugin": plugin})
        assert plugin.converter is not None  # noqa: S101  made by the line above
        plugin.converter.add_attribute_function(field_attributes)  # type: ignore[no-untyped-call]
        add_components(self.spec.components, items)
