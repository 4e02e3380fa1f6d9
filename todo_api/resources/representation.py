"""The SQL that writes JSON: the stored representation of a row, and the objects around it.

A trigger of each resource writes a row's JSON into its column `json`, and reads send that text as
it is (`row_function.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, LargeBinary, Text, cast, func, literal_column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Column, ColumnElement, Table

# RFC 3339 in UTC, to the microsecond.
TIMESTAMP_FORMAT = '\'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\''


def member_names(fields: Sequence[str]) -> tuple[str, ...]:
    """Return the members of a resource's representation, in their order."""
    return ("id", "user_id", *fields, "created_at", "updated_at", "revision")


def rendered_row(table: Table, fields: Sequence[str], row: str) -> str:
    """Return the SQL expression of the JSON of a row: `row` is NEW or the table's name."""
    separators = ("{", *"," * (len(fields) + 4))
    members = (
        f"""'{separator}"{name}":' || {rendered_value(table.c[name], f"{row}.{name}")}"""
        for separator, name in zip(separators, member_names(fields), strict=True)
    )
    return "\n            || ".join((*members, "'}'"))


def rendered_value(column: Column[Any], value: str) -> str:
    """Return the SQL expression of a column's JSON value, as text; `null` for NULL."""
    if isinstance(column.type, DateTime):
        value = f"to_char(timezone('UTC', {value}),\n                {TIMESTAMP_FORMAT})"
    return f"coalesce(to_json({value})::text, 'null')" if column.nullable else f"to_json({value})"


def json_text(value: str) -> ColumnElement[str]:
    """Return a constant of JSON, such as `true`."""
    return literal_column(f"'{value}'", Text)


def json_number(column: ColumnElement[int]) -> ColumnElement[str]:
    return cast(column, Text)


def json_id(column: ColumnElement[Any]) -> ColumnElement[str]:
    return json_text('"') + cast(column, Text) + json_text('"')


def json_timestamp(column: ColumnElement[Any]) -> ColumnElement[str]:
    """Return RFC 3339 in UTC, to the microsecond, whatever the server's time zone is."""
    utc = func.timezone(literal_column("'UTC'"), column)
    return json_text('"') + func.to_char(utc, literal_column(TIMESTAMP_FORMAT)) + json_text('"')


def json_object(members: Mapping[str, ColumnElement[str]]) -> ColumnElement[str]:
    """Return the text of a JSON object of these members, each the text of a JSON value."""
    text, separator = json_text("{"), ""
    for name, value in members.items():
        text = text + json_text(f'{separator}"{name}":') + value
        separator = ","
    return text + json_text("}")


def as_bytes(json: ColumnElement[str]) -> ColumnElement[bytes]:
    """Return the text in UTF-8, which the driver does not decode."""
    return func.convert_to(json, literal_column("'UTF8'"), type_=LargeBinary)
