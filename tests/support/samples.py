"""Valid and invalid values for each type of field, for tests of all fields of all resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from todo_api.resources.types import BooleanType, EnumType, IntegerType, TextType

if TYPE_CHECKING:
    from todo_api.resources.fields import Field

TEXTS = ["Buy oats", "apples", "Äpfel", "Zwieback", "\U0001f43b"]


def sample_values(field: Field) -> list[Any]:
    """Return different valid values of the field, with null if the field is nullable."""
    match field.type:
        case BooleanType():
            values: list[Any] = [False, True]
        case EnumType(values=words):
            values = list(words)
        case IntegerType(minimum=minimum, maximum=maximum):
            values = [maximum, minimum, (minimum + maximum) // 2]
        case TextType(minimum=minimum, maximum=maximum):
            values = [text.ljust(minimum, "x")[:maximum] for text in TEXTS]
        case unknown:
            pytest.fail(f"{unknown}: add its values to sample_values in tests/support/samples.py")
    return [values[0], None, *values[1:]] if field.nullable else values


def breaking_values(field: Field) -> dict[str, Any]:
    """Return an invalid value for each rule of the field's type. The keys are the rules' names."""
    match field.type:
        case BooleanType():
            return {}
        case EnumType(values=words):
            return {"known": words[0].upper()}
        case IntegerType(maximum=maximum):
            return {"range": maximum + 1}
        case TextType(maximum=maximum, is_stripped=is_stripped):
            stripped = {"stripped": f" {sample_values(field)[0]}"[:maximum]} if is_stripped else {}
            return {"length": "x" * (maximum + 1)} | stripped
        case unknown:
            pytest.fail(f"{unknown}: add its values to breaking_values in tests/support/samples.py")
