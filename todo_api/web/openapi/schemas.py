"""Schemas in the OpenAPI document: the attributes and examples that follow from their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apispec.ext.marshmallow.common import resolve_schema_cls
from marshmallow import Schema, fields

from todo_api.web.fields import OneOfSchemas, SchemaUnion

if TYPE_CHECKING:
    import re

    from apispec.ext.marshmallow.openapi import OpenAPIConverter

# Any text that PostgreSQL can hold: all but U+0000.
TEXT = r"^[^\u0000]*$"

LENGTHS_OF_FORMAT = {"uuid": (36, 36), "date-time": (20, 32)}


def schema_name(schema: Any) -> str | None:
    """Return the name of a schema's component, or None for flask-smorest's own schemas.

    flask-smorest registers them though no operation uses them. A schema without a name is inlined,
    so that the document has no component for it.
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

    apispec calls it for each field (`add_attribute_function`). It replaces `example`
    in `ret` (OpenAPI 3.0) by `examples` (3.1), because Swagger UI would fill its form with the
    value of `example`.
    """
    attributes: dict[str, Any] = {}
    if "example" in ret:
        attributes["examples"] = [ret.pop("example")]
    if isinstance(field, OneOfSchemas):
        attributes |= union_object(field)
        attributes["oneOf"] = [reference(converter, schema) for schema in attributes["oneOf"]]
    if ret.get("type") == "boolean" and len(ret.get("enum", ())) == 1:
        # An enum makes generated clients declare an enumeration; a constant is the literal itself.
        (attributes["const"],) = ret.pop("enum")
    if "integer" in ret.get("type", ()):
        attributes["format"] = "int64"
    if "string" in ret.get("type", ()) and "enum" not in ret:
        if "format" not in ret:
            attributes["pattern"] = ret.get("pattern", TEXT)
        elif ret["format"] in LENGTHS_OF_FORMAT:
            attributes["minLength"], attributes["maxLength"] = LENGTHS_OF_FORMAT[ret["format"]]
    return attributes


def reference(converter: OpenAPIConverter, schema: type[Schema] | SchemaUnion) -> Any:
    """Return the reference to the component of a schema, which is registered if it is not yet."""
    resolve: Any = converter.resolve_nested_schema
    if not isinstance(schema, SchemaUnion):
        return resolve(schema)
    components = converter.spec.components
    if schema.name not in components.schemas:
        # openapi-typescript warns of a discriminator that leads to a schema without this type.
        alternatives = [resolve(each) for each in schema.schemas]
        components.schema(schema.name, {"type": "object", "oneOf": alternatives})
    return components.get_ref("schema", schema.name)


def union_object(union: OneOfSchemas) -> dict[str, Any]:
    """Return the schema object of a union. Its schemas are marshmallow's."""
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
    """Return the schema with the schema object of a union in `items`; another one as it is.

    apispec resolves the schemas of a schema object, but not a field in the place of one.
    """
    match schema:
        case {"items": OneOfSchemas() as union}:
            return {**schema, "items": union_object(union)}
    return schema


def string_schema(pattern: re.Pattern[str], max_length: int, example: str) -> dict[str, Any]:
    """Return the schema of a string that the whole pattern matches."""
    return {
        "type": "string",
        "pattern": f"^(?:{pattern.pattern})$",
        "maxLength": max_length,
        "examples": [example],
    }


def example_of(schema: Any) -> Any:
    """Return a value of a schema, a field or a schema object, made of its members' examples."""
    match schema:
        case {"items": inner} | fields.List(inner=inner):
            return [example_of(inner)]
        case fields.Nested(schema=one) | OneOfSchemas(first=one) | SchemaUnion(first=one):
            return example_of(one)
        case fields.Field():
            return schema.metadata["example"]
        case Schema():
            return {name: example_of(field) for name, field in schema.fields.items()}
    return example_of(schema())
