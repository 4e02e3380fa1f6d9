"""Schemas in the OpenAPI document, with keywords and examples from their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apispec.ext.marshmallow.common import resolve_schema_cls
from marshmallow import Schema, fields

from todo_api.web.fields import OneOfSchemas, SchemaUnion

if TYPE_CHECKING:
    import re

    from apispec.ext.marshmallow.openapi import OpenAPIConverter

# Any text that PostgreSQL can store: all characters except U+0000.
TEXT = r"^[^\u0000]*$"

LENGTHS_OF_FORMAT = {"uuid": (36, 36), "date": (10, 10), "date-time": (20, 32)}


def schema_name(schema: Any) -> str | None:
    """Return the name of a schema's component, or None for flask-smorest's own schemas.

    flask-smorest registers schemas that no operation uses. Without a name, a schema gets no
    component in the document.
    """
    if isinstance(schema, SchemaUnion):
        return schema.name
    schema_class: Any = resolve_schema_cls(schema)
    is_ours = not schema_class.__module__.startswith("flask_smorest")
    return str(schema_class.__name__) if is_ours else None


def field_attributes(
    converter: OpenAPIConverter, field: fields.Field[Any], ret: dict[str, Any]
) -> dict[str, Any]:
    """Return the JSON Schema keywords that follow from a field's type: bounds, `examples`.

    apispec calls this function for each field (`add_attribute_function`). `example` in `ret`
    (OpenAPI 3.0) is replaced by `examples` (3.1), because Swagger UI would fill its form with
    `example`.
    """
    attributes: dict[str, Any] = {}
    if "example" in ret:
        attributes["examples"] = [ret.pop("example")]
    if isinstance(field, OneOfSchemas):
        attributes |= union_object(field)
        attributes["oneOf"] = [reference(converter, schema) for schema in attributes["oneOf"]]
    if ret.get("type") == "boolean" and len(ret.get("enum", ())) == 1:
        # Generated clients declare an enumeration for an enum, but a literal for a constant.
        (attributes["const"],) = ret.pop("enum")
    if "propertyNames" in field.metadata:  # apispec does not know this keyword
        attributes["propertyNames"] = {"pattern": TEXT, **field.metadata["propertyNames"]}
    if "integer" in ret.get("type", ()):
        attributes["format"] = "int64"
    if "string" in ret.get("type", ()) and "enum" not in ret:
        if "format" not in ret:
            attributes["pattern"] = ret.get("pattern", TEXT)
        elif ret["format"] in LENGTHS_OF_FORMAT:
            attributes["minLength"], attributes["maxLength"] = LENGTHS_OF_FORMAT[ret["format"]]
    return attributes


def reference(converter: OpenAPIConverter, schema: type[Schema] | SchemaUnion) -> Any:
    """Return the reference to the component of a schema; register the component if needed."""
    resolve: Any = converter.resolve_nested_schema
    if not isinstance(schema, SchemaUnion):
        return resolve(schema)
    components = converter.spec.components
    if schema.name not in components.schemas:
        # Without `type: object`, openapi-typescript warns about the discriminator.
        alternatives = [resolve(each) for each in schema.schemas]
        components.schema(schema.name, {"type": "object", "oneOf": alternatives})
    return components.get_ref("schema", schema.name)


def union_object(union: OneOfSchemas) -> dict[str, Any]:
    """Return the schema object of a union, with marshmallow's schemas in `oneOf`."""
    return {
        "oneOf": list(union.schemas.values()),
        "discriminator": {
            "propertyName": union.discriminator,
            "mapping": {
                value: f"#/components/schemas/{schema_name(schema)}"
                for value, schema in union.schemas.items()
            },
        },
    }


def array_object(schema: Any) -> Any:
    """Return an array schema in which a union is replaced by its schema object.

    apispec does not resolve a field in `items`. Any other schema is returned unchanged.
    """
    match schema:
        case {"items": OneOfSchemas() as union}:
            return {**schema, "items": union_object(union)}
    return schema


def string_schema(pattern: re.Pattern[str], max_length: int, example: str) -> dict[str, Any]:
    """Return the schema of a string that must match the whole pattern."""
    return {
        "type": "string",
        "pattern": f"^(?:{pattern.pattern})$",
        "maxLength": max_length,
        "examples": [example],
    }


def example_of(schema: Any) -> Any:
    """Return an example of a schema, field or schema object, built from its members' examples."""
    match schema:
        case fields.Field(metadata={"example": example}):
            return example
        case {"items": inner} | fields.List(inner=inner):
            return [example_of(inner)]
        case fields.Nested(schema=inner) | OneOfSchemas(first=inner) | SchemaUnion(first=inner):
            return example_of(inner)
        case Schema():
            omitted = getattr(schema, "omitted_from_example", ())
            return {
                name: example_of(field)
                for name, field in schema.fields.items()
                if name not in omitted
            }
    return example_of(schema())
