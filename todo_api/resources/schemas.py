"""The schemas of a resource's requests and responses, built from its fields."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, validate

from todo_api.web.fields import (
    MOMENT,
    OPAQUE,
    PAGE_LIMIT,
    USER_ID,
    BooleanParameter,
    OneOfSchemas,
    limit_parameter,
)

if TYPE_CHECKING:
    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

CURSOR_LENGTH = 2000  # a title of 255 characters is in it, in base64
SINCE_LENGTH = 200


class Schemas:
    """The schemas of one resource. Each is made once, and named as in the OpenAPI document."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._name = resource.name.capitalize()

    # Requests

    @cached_property
    def creation(self) -> type[Schema]:
        """The body of a POST."""

        def member(field: Field) -> fields.Field[Any]:
            options = {"required": True} if field.required else {"load_default": field.default}
            return field.type.request_field(**options, **field.options())

        return self._made(f"New{self._name}", self._each(member))

    @cached_property
    def replacement(self) -> type[Schema]:
        """The body of a PUT."""

        def member(field: Field) -> fields.Field[Any]:
            options = {"load_default": field.default} if field.is_reset_by_put else {}
            return field.type.request_field(required=field.required, **options, **field.options())

        return self._made(f"{self._name}Replacement", self._each(member))

    @cached_property
    def patch(self) -> type[Schema]:
        """The body of a PATCH: a JSON merge patch (RFC 7396)."""
        members = self._each(lambda field: field.type.request_field(**field.options()))
        return self._made(f"{self._name}Patch", members)

    @cached_property
    def list_query(self) -> type[Schema]:
        """The query of a list: its filters, its order, its page."""
        resource = self._resource
        sorts = [prefix + name for name in resource.sort_keys for prefix in ("", "-")]
        members: dict[str, fields.Field[Any]] = {
            name: filter_.parameter for name, filter_ in resource.filters.items()
        }
        members["deleted"] = BooleanParameter(
            load_default=False,
            metadata={"description": "List the trash instead.", "example": False},
        )
        members["sort"] = fields.String(
            load_default="-created_at",
            validate=validate.OneOf(sorts, error="Must be one of: {choices}."),
            metadata={
                "description": "What to sort by; - is for descending. Text sorts by code point.",
                "example": "updated_at",
            },
        )
        members["limit"] = limit_parameter(resource.plural)
        members["cursor"] = fields.String(
            validate=validate.Length(1, CURSOR_LENGTH),
            metadata={
                "description": "Where the page starts: from the `Link` of the page before.",
                "pattern": OPAQUE,
                "example": "WyJCdXkiLCIwMTlhYTVjOCIsImZmIl0",
            },
        )
        return self._made(f"{self._name}Query", members)

    @cached_property
    def changes_query(self) -> type[Schema]:
        """The query of a sync."""
        since = fields.String(
            required=True,
            validate=validate.Length(1, SINCE_LENGTH),
            metadata={
                "description": "`next` of the last page; a revision; or 0 for a full sync.",
                "pattern": OPAQUE,
                "example": "0",
            },
        )
        members = {"since": since, "limit": limit_parameter(self._resource.plural)}
        return self._made(f"{self._name}ChangesQuery", members)

    # Responses

    @cached_property
    def item(self) -> type[Schema]:
        """One of the resource, as PostgreSQL writes it."""
        resource = self._resource

        def read_only(field: Any, description: str, example: Any) -> Any:
            field.metadata |= {"description": description, "example": example}
            return field

        revision = fields.Integer(required=True, validate=validate.Range(1, 2**63 - 1))
        members = {
            "id": read_only(
                fields.UUID(required=True), "A UUIDv7, made by the server.", resource.example_id
            ),
            "user_id": read_only(fields.UUID(required=True), "The owner.", USER_ID),
            **{
                name: field.type.response_field(required=True, **field.options())
                for name, field in resource.by_name.items()
            },
            "revision": read_only(revision, "The owner's change number of its last change.", 7),
        }
        return self._made(self._name, members)

    @cached_property
    def deleted_item(self) -> type[Schema]:
        """One in the trash."""
        members = {
            "deleted_at": moment("When it was deleted."),
            "purge_at": moment("When it may be removed for good."),
        }
        return self._made(f"Deleted{self._name}", members, base=self.item)

    @cached_property
    def page(self) -> dict[str, Any]:
        """A page of a list, which is of live items or of the trash."""
        items = {"oneOf": [self.item, self.deleted_item]}
        return {"type": "array", "maxItems": PAGE_LIMIT, "items": items}

    @cached_property
    def changes(self) -> type[Schema]:
        """A page of changes, in the order in which they were made."""
        name = self._resource.name
        changed = {"deleted": flag(value=False, description="It is not deleted.")}
        deletion = {
            "id": fields.UUID(
                required=True,
                metadata={"description": f"The {name}.", "example": self._resource.example_id},
            ),
            "revision": fields.Integer(
                required=True,
                validate=validate.Range(1, 2**63 - 1),
                metadata={"description": "The number of this change.", "example": 7},
            ),
            "deleted": flag(value=True, description="It is deleted."),
            "deleted_at": moment("When it was deleted, in UTC."),
        }
        members = {
            "changes": fields.List(
                OneOfSchemas(
                    self._made(f"Changed{self._name}", changed, base=self.item),
                    self._made(f"{self._name}Deletion", deletion),
                ),
                required=True,
                validate=validate.Length(max=PAGE_LIMIT),
                metadata={"description": f"Each {name} that has changed, once, as it is now."},
            ),
            "next": fields.String(
                required=True,
                validate=validate.Length(1, SINCE_LENGTH),
                metadata={
                    "description": "Where to go on: the next `since`.",
                    "pattern": OPAQUE,
                    "example": "WzcsbnVsbCxmYWxzZSxudWxsLGZhbHNlXQ",
                },
            ),
            "more": fields.Boolean(
                required=True,
                metadata={
                    "description": "Whether to go on at once: this is not all.",
                    "example": False,
                },
            ),
        }
        return self._made(f"{self._name}Changes", members)

    def _each(self, member: Any) -> dict[str, fields.Field[Any]]:
        return {field.name: member(field) for field in self._resource.fields}

    def _made(
        self, name: str, members: dict[str, Any], base: type[Schema] = Schema
    ) -> type[Schema]:
        return base.from_dict(members, name=name)


def moment(description: str) -> fields.DateTime:
    return fields.DateTime(required=True, metadata={"description": description, "example": MOMENT})


def flag(*, value: bool, description: str) -> fields.Boolean:
    return fields.Boolean(
        required=True,
        validate=validate.Equal(value),
        metadata={"description": description, "example": value},
    )
