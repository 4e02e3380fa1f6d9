"""Paths in the OpenAPI document, and their parameters."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from marshmallow import validate

from todo_api.web.fields import EXAMPLE_LIST_ID, EXAMPLE_TASK_ID, EXAMPLE_USER_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marshmallow.fields import Field

EXAMPLE_IDS = {
    "user_id": EXAMPLE_USER_ID,
    "task_id": EXAMPLE_TASK_ID,
    "list_id": EXAMPLE_LIST_ID,
}

# A variable in Flask's rule: `<converter:name>` or `<name>`.
VARIABLE = re.compile("<(?:[^:<>]+:)?([^<>]+)>")


@cache
def path_template(rule: str) -> str:
    """Return Flask's rule in the form of the OpenAPI document: `/api/{user_id}/tasks`."""
    return VARIABLE.sub(r"{\1}", rule)


def path_parameters(rule: str, texts: Mapping[str, Field[Any]]) -> list[dict[str, Any]]:
    """Return the parameter objects of the ids and texts in Flask's rule."""
    return [
        text_parameter(name, texts[name]) if name in texts else id_parameter(name)
        for name in VARIABLE.findall(rule)
    ]


def id_parameter(name: str) -> dict[str, Any]:
    """Return the parameter object of an id: `user_id`, or the id of a resource."""
    is_user = name == "user_id"
    description = f"The id of the {name.removesuffix('_id')}."
    return {
        "in": "path",
        "name": name,
        "required": True,
        "description": "The id of the token's user." if is_user else description,
        "schema": {
            "type": "string",
            "format": "uuid",
            "minLength": 36,
            "maxLength": 36,
            "examples": [EXAMPLE_IDS.get(name, EXAMPLE_TASK_ID)],
        },
    }


def text_parameter(name: str, field: Field[Any]) -> dict[str, Any]:
    """Return the parameter object of a text with a length, a pattern and an example."""
    (length,) = (each for each in field.validators if isinstance(each, validate.Length))
    return {
        "in": "path",
        "name": name,
        "required": True,
        "description": field.metadata["description"],
        "schema": {
            "type": "string",
            "minLength": length.min,
            "maxLength": length.max,
            "pattern": field.metadata["pattern"],
            "examples": [field.metadata["example"]],
        },
    }
