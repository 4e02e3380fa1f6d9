"""Comparisons of long values. A failure shows only the differences."""

from __future__ import annotations

import json
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def assert_same_lines(
    actual: Iterable[object], expected: Iterable[object], advice: str, context: int = 0
) -> None:
    """Fail with `advice` and a unified diff, from expected to actual, if any line differs."""
    expected_lines, actual_lines = [str(line) for line in expected], [str(line) for line in actual]
    if actual_lines != expected_lines:
        diff = unified_diff(
            expected_lines, actual_lines, "expected", "actual", lineterm="", n=context
        )
        pytest.fail("\n".join([advice, *diff]), pytrace=False)


def assert_same_json(actual: Any, expected: Any, advice: str) -> None:
    """Fail with `advice` and a unified diff if two values of JSON differ.

    The order of an object's members does not matter. Each line begins with the JSON Pointer
    (RFC 6901) of its value, so that each line of the diff names its place.
    """
    assert_same_lines(list_values(actual), list_values(expected), advice)


def list_values(value: Any, pointer: str = "") -> list[str]:
    """Return a line for each value that contains no other value: its JSON Pointer and the value.

    A text with several lines becomes as many lines.
    """
    if isinstance(value, dict) and value:
        members = [
            (name.replace("~", "~0").replace("/", "~1"), value[name]) for name in sorted(value)
        ]
    elif isinstance(value, list | tuple) and value:
        members = list(enumerate(value))
    elif isinstance(value, str) and "\n" in value:
        return [f"{pointer} | {line}" for line in value.splitlines()]
    else:
        return [f"{pointer} = {json.dumps(value, ensure_ascii=False, default=str)}"]
    return [line for name, member in members for line in list_values(member, f"{pointer}/{name}")]
