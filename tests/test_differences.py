"""A comparison that fails says what differs, where, and what to do, and nothing else."""

import pytest

from tests.support.differences import assert_same_json, assert_same_lines

GET = {"tags": ["tasks", "lists"], "security": []}
DOCUMENT = {"description": "Tasks.\n\nTwo owners each.", "paths": {"/tasks": {"get": GET}}}


def test_same_json_in_another_order_passes():
    assert_same_json({"a": 1, "b": {"c": [], "d": {}}}, {"b": {"d": {}, "c": []}, "a": 1}, "advice")


@pytest.mark.parametrize(
    ("actual", "diff"),
    [
        (
            {**DOCUMENT, "paths": {"/tasks": {"get": {**GET, "tags": ["tasks", "trash"]}}}},
            ['-/paths/~1tasks/get/tags/1 = "lists"', '+/paths/~1tasks/get/tags/1 = "trash"'],
        ),
        (
            {**DOCUMENT, "paths": {"/tasks": {"get": {"tags": ["tasks", "lists"]}}}},
            ["-/paths/~1tasks/get/security = []"],
        ),
        (
            {**DOCUMENT, "openapi": True},
            ["+/openapi = true"],
        ),
        (
            {**DOCUMENT, "description": "Tasks.\n\nOne owner each."},
            ["-/description | Two owners each.", "+/description | One owner each."],
        ),
    ],
)
def test_json_that_differs_is_shown_by_its_pointers(actual, diff):
    with pytest.raises(pytest.fail.Exception) as failure:
        assert_same_json(actual, DOCUMENT, "Run: make openapi")

    advice, *lines = str(failure.value).splitlines()
    assert advice == "Run: make openapi"
    assert [line for line in lines if not line.startswith(("---", "+++", "@@"))] == diff


def test_a_line_that_is_missing_is_shown_alone():
    with pytest.raises(pytest.fail.Exception) as failure:
        assert_same_lines(["a", "c"], ["a", "b", "c"], "Add it.")

    assert str(failure.value).splitlines()[3:] == ["@@ -2 +1,0 @@", "-b"]
