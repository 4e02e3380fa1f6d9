"""The values that generated classes hold, as JSON has them."""

from datetime import UTC, date, datetime, time
from enum import Enum
from uuid import UUID

import attrs


def plain(value):
    """Return the value as JSON. An object has the members that its class declares."""
    if attrs.has(type(value)):
        value = {name: member for name, member in members(value) if not is_unset(member)}
    match value:
        case dict():
            return {name: plain(member) for name, member in value.items()}
        case list():
            return [plain(item) for item in value]
    return plain_text(value) if isinstance(value, date | time | UUID | Enum) else value


def plain_text(value):
    """Return the text that JSON has for a time, a date, an id or a member of an enumeration."""
    if isinstance(value, datetime):
        text = value.astimezone(UTC).isoformat(timespec="microseconds")
        return text.replace("+00:00", "Z")
    return str(value)


def members(value):
    """Yield the names and values of the members that an attrs class declares.

    A name that Python has for something else ends with `_`: `type_`. A class that declares no
    member stands for an object whose members belong to the client.
    """
    names = [field.name for field in attrs.fields(type(value))]
    if names == ["additional_properties"]:
        yield from value.additional_properties.items()
    for name in names:
        if name != "additional_properties":
            yield name.removesuffix("_"), getattr(value, name)


def is_unset(value):
    """Whether the value stands for a member that the JSON object does not have."""
    return type(value).__name__ == "Unset"
