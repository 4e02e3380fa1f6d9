"""The operation that a view declares, for the checks of requests and for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from marshmallow import Schema


@dataclass(frozen=True)
class Operation:
    """An operation (OpenAPI), as the decorators of its view declare it.

    `media_types` are those of the body, if it has one. `responses` has the schema of each status:
    None if the response has no body, or if the status is an error. `current` is the schema of what
    a 412 holds, if the operation reads preconditions.
    """

    body: Schema | None = None
    media_types: tuple[str, ...] = ()
    is_body_required: bool = False
    query: Schema | None = None
    responses: Mapping[int, Any] = field(default_factory=dict)
    current: type[Schema] | None = None
    is_idempotent: bool = False

    @property
    def is_conditional(self) -> bool:
        """Whether the view calls `read_precondition`."""
        return self.current is not None

    @cached_property
    def query_names(self) -> frozenset[str]:
        """Return the names of the query parameters."""
        return frozenset(self.query.fields if self.query else ())

    @property
    def is_documented(self) -> bool:
        """Whether the operation is in the document; then its responses are JSON."""
        return bool(self.responses)


UNDECLARED = Operation()


def operation_of(view: Callable[..., Any]) -> Operation:
    """Return the operation that the view declares, or one that declares nothing."""
    operation: Operation = getattr(view, "operation", UNDECLARED)
    return operation
