"""Valid and invalid values for each type of field, for tests of all fields of all resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from todo_api.resources.calendar_types import DateType, TimeOfDayType, TimestampType, TimeZoneType
from todo_api.resources.collection_types import LabelsType, TextObjectType
from todo_api.resources.order import OrderKeyType
from todo_api.resources.types import (
    BooleanType,
    ColorType,
    EnumType,
    IdType,
    IntegerType,
    TextType,
)

if TYPE_CHECKING:
    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

TEXTS = ["Buy oats", "apples", "Äpfel", "Zwieback", "\U0001f43b"]
# Long past or far in the future, so that no test depends on the day on which it runs.
DATES = ["2020-02-29", "9999-12-30", "1970-01-01"]
TIMES_OF_DAY = ["09:30:00", "23:59:59", "00:00:00"]

# Values of types whose limits do not matter here.
VALUES_BY_TYPE: dict[type, list[Any]] = {
    BooleanType: [False, True],
    ColorType: ["#3366ff", "#000000", "#ffcc00"],
    DateType: DATES,
    TimeOfDayType: TIMES_OF_DAY,
    TimeZoneType: ["Europe/Berlin", "Pacific/Kiritimati", "America/New_York"],
    TimestampType: [
        "2020-02-29T12:00:00.000001Z",
        "1970-01-01T00:00:00.000000Z",
        "2024-12-31T23:59:59.999999Z",
    ],
    LabelsType: [["Zoo", "errand", "Äpfel"], [], ["errand"], ["\U0001f43b"]],
    # The keys are in the order of jsonb: shorter ones first.
    TextObjectType: [{"source": "mail"}, {}, {"$.a/~": "Äpfel", "source": ""}],
}

# The other members that a value of a field needs, by resource and field. The first are for all
# values except null, the second for null.
COMPANIONS: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("task", "due_time"): ({"due_date": DATES[0]}, {}),
    ("task", "time_zone"): ({"due_date": DATES[0], "due_time": TIMES_OF_DAY[0]}, {}),
    ("task", "completed_at"): ({"completed": True}, {"completed": False}),
}


def companions(resource: Resource, field: Field, value: Any) -> dict[str, Any]:
    """Return the other members without which a request with this value is refused or ignored."""
    for_values, for_null = COMPANIONS.get((resource.name, field.name), ({}, {}))
    return for_null if value is None else for_values


def with_companions(resource: Resource, field: Field, value: Any) -> dict[str, Any]:
    """Return a body with this value of the field, and what it needs."""
    return {**companions(resource, field, value), field.name: value}


def has_samples(field: Field) -> bool:
    """Return whether samples of the field exist.

    An id refers to another row, so a valid value cannot be written down here. Lists, parents and
    their ids have their own tests, in tests/tasks/ and tests/lists/.
    """
    return not isinstance(field.type, IdType)


def sample_row(resource: Resource, number: int) -> dict[str, Any]:
    """Return valid values of all fields, different for each number."""
    values = {}
    fields = [field for field in resource.writable_fields if has_samples(field)]
    for field in fields:
        samples = sample_values(field)
        values[field.name] = samples[number % len(samples)]
    for field in fields:
        if values[field.name] is not None:
            for name, value in companions(resource, field, values[field.name]).items():
                values[name] = value if values[name] is None else values[name]
    return values


def patched_value(field: Field, before: Any, value: Any) -> Any:
    """Return what a PATCH with this value makes of the value before: objects are merged."""
    return {**before, **value} if isinstance(field.type, TextObjectType) else value


def sample_values(field: Field) -> list[Any]:
    """Return different valid values of the field, with null if the field is nullable."""
    match field.type:
        case EnumType(values=words):
            values = list(words)
        case IntegerType(minimum=minimum, maximum=maximum):
            values = [maximum, minimum, (minimum + maximum) // 2]
        case TextType(minimum=minimum, maximum=maximum):
            values = [text.ljust(minimum, "x")[:maximum] for text in TEXTS]
        case other if type(other) in VALUES_BY_TYPE:
            values = VALUES_BY_TYPE[type(other)]
        case unknown:
            pytest.fail(f"{unknown}: add its values to sample_values in tests/support/samples.py")
    return [values[0], None, *values[1:]] if field.nullable else values


def breaking_values(field: Field) -> dict[str, Any]:
    """Return an invalid value for each rule of the field's type. The keys are the rules' names."""
    values: dict[str, Any] = {}
    match field.type:
        case (
            BooleanType()
            | IdType()
            | OrderKeyType()
            | TimeOfDayType()
            | TimeZoneType()
            | TimestampType()
        ):
            pass
        case ColorType():
            values["format"] = "3366ff"
        case DateType():
            values["range"] = "1969-12-31"
        case EnumType(values=words):
            values["known"] = words[0].upper()
        case IntegerType(maximum=maximum):
            values["range"] = maximum + 1
        case LabelsType(maximum=maximum):
            values["count"] = [f"label {number:02}" for number in range(maximum + 1)]
        case TextObjectType(maximum=maximum):
            values["keys"] = {f"key {number}": "" for number in range(maximum + 1)}
        case TextType(maximum=maximum, is_stripped=is_stripped):
            values["length"] = "x" * (maximum + 1)
            if is_stripped:
                values["stripped"] = f" {sample_values(field)[0]}"[:maximum]
        case unknown:
            pytest.fail(f"{unknown}: add its values to breaking_values in tests/support/samples.py")
    return values
