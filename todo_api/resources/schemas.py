"""The schemas of a resource's requests and responses, built from its fields."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, ValidationError, fields, validate

from todo_api.resources.sync_tokens import EXAMPLE as SYNC_TOKEN
from todo_api.resources.time_zones import TimeZone
from todo_api.web.fields import (
    EXAMPLE_REVISION,
    EXAMPLE_TIMESTAMP,
    EXAMPLE_USER_ID,
    OPAQUE,
    PAGE_LIMIT,
    Anything,
    OneOfSchemas,
    ResponseSchema,
    SchemaUnion,
    StrictInteger,
    StrictUUID,
    limit_parameter,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

SYNC_TOKEN_LENGTH = len(SYNC_TOKEN)
# A cursor may contain a title of 255 characters as JSON (up to 6 bytes for each), in base64.
CURSOR_LENGTH = 3000

# The maximum number of groups in a count: one for each list of a user, and one for null.
MAX_GROUPS = 1000

EXAMPLE_PURGE_TIME = "2026-12-21T09:30:00.000000Z"

# The members of every resource that only the server writes. `id` is not one of them: a POST may
# have it.
READ_ONLY = ("user_id", "created_at", "updated_at", "revision")


class CreationSchema(Schema):
    """The body of a POST."""

    read_only: tuple[str, ...] = READ_ONLY

    def handle_error(self, error: ValidationError, data: Any, **options: Any) -> None:  # noqa: ARG002
        """Replace the error of each read-only member by 'Is read-only.'."""
        messages = error.messages
        if isinstance(messages, dict):
            messages |= {name: ["Is read-only."] for name in self.read_only if name in messages}


class Schemas:
    """The schemas of one resource. Each has its name in the OpenAPI document."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._name = resource.name.capitalize()

    # Requests

    @cached_property
    def creation(self) -> type[Schema]:
        """The body of a POST."""

        def member(field: Field) -> fields.Field[Any]:
            absent: Any = field.default
            if field.absent is not None:
                # apispec does not document a function as the default. Clients cannot send `absent`.
                absent = lambda: field.absent  # noqa: E731
            options = {"required": True} if field.required else {"load_default": absent}
            return field.type.request_field(**options, **field.options())

        description = "An id that the client makes, so that it can send the request again."
        client_id = StrictUUID(
            metadata={"description": description, "example": self._resource.example_id}
        )
        schema = self._make_schema(
            f"New{self._name}", {"id": client_id, **self._each(member)}, base=CreationSchema
        )
        read_only = (field.name for field in self._resource.fields if field.is_read_only)
        schema.read_only = (*READ_ONLY, *read_only)  # type: ignore[attr-defined]
        return self._without_in_example(schema)

    @cached_property
    def put(self) -> type[Schema]:
        """The body of a PUT."""

        def member(field: Field) -> fields.Field[Any]:
            return field.type.request_field(required=field.required, **field.options())

        members = self._each(member) | self._read_only_members()
        return self._make_schema(f"{self._name}Put", members)

    @cached_property
    def patch(self) -> type[Schema]:
        """The body of a PATCH: a JSON merge patch (RFC 7396)."""

        def member(field: Field) -> fields.Field[Any]:
            options = field.options() | {"allow_none": field.is_nullable_in_patch}
            return field.type.patch_field(**options)

        read_only = self._read_only_members()
        schema = self._make_schema(f"{self._name}Patch", self._each(member) | read_only)
        return self._without_in_example(schema, *read_only)

    def _without_in_example(self, schema: type[Schema], *others: str) -> type[Schema]:
        """Leave these members out of the schema's example, and those that do not belong there."""
        hidden = (field.name for field in self._resource.fields if not field.is_in_example)
        schema.omitted_from_example = (*hidden, *others)  # type: ignore[attr-defined]
        return schema

    def _read_only_members(self) -> dict[str, Any]:
        """Return the read-only members, which a PUT or PATCH may contain as GET returned them."""
        revision = StrictInteger(
            validate=validate.Range(1, 2**63 - 1, error="Must be {min} to {max}."),
            metadata={
                "description": "A precondition, like If-Match: the revision that you read.",
                "example": EXAMPLE_REVISION,
            },
        )
        ids = {
            "id": ("Must be the id in the path.", self._resource.example_id),
            "user_id": ("Must be the user's id in the path.", EXAMPLE_USER_ID),
        }
        members: dict[str, Any] = {
            name: StrictUUID(metadata={"description": description, "example": example})
            for name, (description, example) in ids.items()
        }
        for name, field in self._resource.by_name.items():
            if field.is_read_only:
                metadata = {"description": "Ignored.", "example": field.example}
                members[name] = Anything(metadata=metadata, allow_none=True)
        return members | {"revision": revision}

    @cached_property
    def list_query(self) -> type[Schema]:
        """The query of a page: filters, time zone, sort, limit and cursor."""
        resource = self._resource
        sorts = [prefix + name for name in resource.sort_keys for prefix in ("", "-")]
        members = self._filters()
        members["sort"] = fields.String(
            load_default="-created_at",
            validate=validate.OneOf(sorts, error="Must be one of: {choices}."),
            metadata={
                "description": self._sort_description(),
                "example": "updated_at",
            },
        )
        members["limit"] = limit_parameter(resource.plural)
        members["cursor"] = cursor_parameter()
        return self._make_schema(f"{self._name}Query", members)

    def _sort_description(self) -> str:
        resource = self._resource
        by_several = (
            f"`{name}` means {' and '.join(f'`{member}`' for member in key.members)}."
            for name, key in resource.more_sort_keys.items()
        )
        needs = (
            f"`{name}` needs {' or '.join(f'`{filter_}`' for filter_ in filters)}."
            for name, filters in resource.sort_needs.items()
        )
        description = (
            "The member to sort by; with `-` before its name, in descending order. Text is sorted "
            "by code point. Items with the same value are sorted by `id`. Items without a value "
            "come last, and first in descending order."
        )
        return " ".join((description, *by_several, *needs))

    @cached_property
    def count_query(self) -> type[Schema]:
        """The query of a count: filters and time zone."""
        members = self._filters()
        names = self._resource.counted_by
        if names:
            members["by"] = fields.String(
                validate=validate.OneOf(names, error="Must be one of: {choices}."),
                metadata={
                    "description": "Also return the number for each value of this member.",
                    "example": names[0],
                },
            )
        return self._make_schema(f"{self._name}CountQuery", members)

    def _filters(self) -> dict[str, fields.Field[Any]]:
        filters = self._resource.filters
        members = {name: filter_.parameter for name, filter_ in filters.items()}
        by_day = [f"`{name}`" for name, filter_ in filters.items() if filter_.is_by_day]
        if by_day:
            description = (
                f"The time zone for {' and '.join(by_day)}: it decides which day is today. The "
                "default is the user's time zone."
            )
            members["time_zone"] = TimeZone(metadata={"description": description})
        return members

    # Responses

    @cached_property
    def item(self) -> type[Schema]:
        """One item of the resource, as PostgreSQL writes it."""
        resource = self._resource

        def documented(field: Any, description: str, example: Any) -> Any:
            field.metadata |= {"description": description, "example": example}
            return field

        members = {
            "id": documented(
                fields.UUID(required=True),
                "A UUIDv7 that the server made, or the id from the client's POST.",
                resource.example_id,
            ),
            "user_id": documented(fields.UUID(required=True), "The owner.", EXAMPLE_USER_ID),
            **{
                name: field.type.response_field(required=True, **field.options())
                for name, field in resource.by_name.items()
            },
            "revision": revision_member(
                "The number of the last change. In double quotes, it is the ETag."
            ),
        }
        return self._make_schema(self._name, members, base=ResponseSchema)

    @cached_property
    def page(self) -> dict[str, Any]:
        """A page of items."""
        return {"type": "array", "maxItems": PAGE_LIMIT, "items": self.item}

    @cached_property
    def count(self) -> type[Schema]:
        """The number of items that pass all filters."""

        def number() -> fields.Integer:
            return fields.Integer(
                required=True,
                validate=validate.Range(0, 2**53 - 1),
                metadata={"description": f"The number of {self._resource.plural}.", "example": 7},
            )

        members: dict[str, fields.Field[Any]] = {"count": number()}
        if self._resource.counted_by:
            by_name = self._resource.by_name
            values = {
                name: by_name[name].type.response_field(**by_name[name].options())
                for name in self._resource.counted_by
            }
            group = self._make_schema(
                f"{self._name}Group", {**values, "count": number()}, base=ResponseSchema
            )
            members["counts"] = fields.List(
                fields.Nested(group),
                validate=validate.Length(max=MAX_GROUPS),
                metadata={"description": "With `by`: the number for each value of this member."},
            )
        return self._make_schema(f"{self._name}Count", members, base=ResponseSchema)

    @cached_property
    def change(self) -> SchemaUnion:
        """An entry of the changes: an item as it is now, or its tombstone."""
        value = fields.Nested(
            self.item, required=True, metadata={"description": "The item as it is now."}
        )
        changed = self._make_schema(
            f"Changed{self._name}",
            self._change(is_tombstone=False) | {"value": value},
            base=ResponseSchema,
        )
        tombstone = self._make_schema(
            f"{self._name}Tombstone",
            self._change(is_tombstone=True)
            | {"deleted_at": timestamp("When the item was deleted.")},
            base=ResponseSchema,
        )
        return SchemaUnion(f"{self._name}Change", (changed, tombstone))

    def _change(self, *, is_tombstone: bool) -> dict[str, Any]:
        deleted = fields.Boolean(
            required=True,
            validate=validate.Equal(is_tombstone),
            metadata={"description": "Whether the item was deleted.", "example": is_tombstone},
        )
        return {
            "type": self._type(),
            "id": self._id(),
            "revision": revision_member("The number of this change."),
            "deleted": deleted,
        }

    @cached_property
    def trashed(self) -> type[Schema]:
        """An entry of the trash."""
        members = {
            "type": self._type(),
            "id": self._id(),
            "deleted_at": timestamp("When the item was deleted."),
            "purge_at": timestamp("When the server may purge the item.", EXAMPLE_PURGE_TIME),
            "value": fields.Nested(
                self.item, required=True, metadata={"description": "The item before its deletion."}
            ),
        }
        return self._make_schema(f"Trashed{self._name}", members, base=ResponseSchema)

    def _type(self) -> fields.String:
        name = self._resource.name
        return fields.String(
            required=True,
            validate=validate.OneOf([name]),
            metadata={"description": "The kind of resource.", "example": name},
        )

    def _id(self) -> fields.UUID:
        metadata = {"description": "The id of the item.", "example": self._resource.example_id}
        return fields.UUID(required=True, metadata=metadata)

    def _each(self, member: Any) -> dict[str, fields.Field[Any]]:
        return {field.name: member(field) for field in self._resource.writable_fields}

    def _make_schema(
        self, name: str, members: dict[str, Any], base: type[Schema] = Schema
    ) -> type[Schema]:
        """Make a schema with this name and these members."""
        return base.from_dict(members, name=name)


class FeedSchemas:
    """The schemas of the changes and of the trash, which contain items of all resources."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._resources = resources

    @cached_property
    def changes_query(self) -> type[Schema]:
        """The query of the changes."""
        since = fields.String(
            required=True,
            validate=validate.Length(1, SYNC_TOKEN_LENGTH),
            metadata={
                "description": "`next` of the previous response, or 0 for a full sync.",
                "pattern": OPAQUE,
                "example": "0",
            },
        )
        members: dict[str, Any] = {"since": since, "limit": limit_parameter("changes")}
        return Schema.from_dict(members, name="ChangesQuery")

    @cached_property
    def changes(self) -> type[Schema]:
        """A page of changes, in the order of their revisions."""
        entries = OneOfSchemas(
            "type", {resource.name: resource.schemas.change for resource in self._resources}
        )
        members: dict[str, Any] = {
            "changes": fields.List(
                entries,
                required=True,
                validate=validate.Length(max=PAGE_LIMIT),
                metadata={"description": "Each changed item once, as it is now."},
            ),
            "next": fields.String(
                required=True,
                validate=validate.Length(1, SYNC_TOKEN_LENGTH),
                metadata={
                    "description": "The `since` of the next request.",
                    "pattern": OPAQUE,
                    "example": SYNC_TOKEN,
                },
            ),
            "more": fields.Boolean(
                required=True,
                metadata={
                    "description": "Whether there are more changes, to be requested immediately.",
                    "example": False,
                },
            ),
        }
        return ResponseSchema.from_dict(members, name="Changes")

    @cached_property
    def trash_query(self) -> type[Schema]:
        """The query of the trash."""
        members: dict[str, Any] = {
            "limit": limit_parameter("entries"),
            "cursor": cursor_parameter(),
        }
        return Schema.from_dict(members, name="TrashQuery")

    @cached_property
    def trash(self) -> dict[str, Any]:
        """A page of the trash."""
        entries = OneOfSchemas(
            "type", {resource.name: resource.schemas.trashed for resource in self._resources}
        )
        return {"type": "array", "maxItems": PAGE_LIMIT, "items": entries}


def cursor_parameter() -> fields.String:
    return fields.String(
        validate=validate.Length(1, CURSOR_LENGTH),
        metadata={
            "description": "The start of the page, from the `Link` of the previous page.",
            "pattern": OPAQUE,
            "example": "WyJCdXkiLCIwMTlhYTVjOCIsImZmIl0",
        },
    )


def revision_member(description: str) -> fields.Integer:
    return fields.Integer(
        required=True,
        validate=validate.Range(1, 2**53 - 1),
        metadata={"description": description, "example": EXAMPLE_REVISION},
    )


def timestamp(description: str, example: str = EXAMPLE_TIMESTAMP) -> fields.DateTime:
    metadata = {"description": description, "example": example}
    return fields.DateTime(required=True, metadata=metadata)
