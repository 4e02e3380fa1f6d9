"""The operation that a view declares, for checks of requests and for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from todo_api.web.responses import JSON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from marshmallow import Schema
    from marshmallow.fields import Field


@dataclass(frozen=True)
class Operation:
    """An operation (OpenAPI), as the decorators of its view declare it.

    `media_types` are the media types of the request's body, empty if there is no body. `responses`
    has a schema for each status, or None for an error or a response without a body.
    `current_schema` is the schema of the member `current` in a 412, or None if the operation reads
    no preconditions. `offers` are the media types of successful responses. `path_texts` are the
    fields of path parameters that are not ids.
    """

    body: Schema | None = None
    media_types: tuple[str, ...] = ()
    is_body_required: bool = False
    query: Schema | None = None
    responses: Mapping[int, Any] = field(default_factory=dict)
    offers: tuple[str, ...] = (JSON,)
    current_schema: type[Schema] | None = None
    is_idempotent: bool = False
    path_texts: Mapping[str, Field[Any]] = field(default_factory=dict)

    @property
    def is_conditional(self) -> bool:
        """Whether the view calls `read_precondition`."""
        return self.current_schema is not None

    @cached_property
    def query_names(self) -> frozenset[str]:
        """The names of the query parameters."""
        return frozenset(self.query.fields if self.query else ())

    @property
    def is_documented(self) -> bool:
        """Whether the operation is in the OpenAPI document."""
        return bool(self.responses)


UNDECLARED = Operation()


def operation_of(view: Callable[..., Any]) -> Operation:
    """Return the operation that the view declares, or one that declares nothing."""
    operation: Operation = getattr(view, "operation", UNDECLARED)
    return operation
