"""A failed comparison shows the advice and the differences with their places, and nothing else."""

import pytest

from tests.support.differences import assert_same_json, assert_same_lines

GET = {"tags": ["tasks", "lists"], "security": []}
DOCUMENT = {"description": "Tasks.\n\nTwo owners each.", "paths": {"/tasks": {"get": GET}}}


def test_order_of_members_is_not_a_difference():
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
def test_different_json_values_are_shown_with_their_pointers(actual, diff):
    with pytest.raises(pytest.fail.Exception) as failure:
        assert_same_json(actual, DOCUMENT, "Run: make openapi")

    advice, *lines = str(failure.value).splitlines()
    assert advice == "Run: make openapi"
    assert [line for line in lines if not line.startswith(("---", "+++", "@@"))] == diff


def test_diff_shows_only_the_missing_line():
    with pytest.raises(pytest.fail.Exception) as failure:
        assert_same_lines(["a", "c"], ["a", "b", "c"], "Add it.")

    assert str(failure.value).splitlines()[3:] == ["@@ -2 +1,0 @@", "-b"]
