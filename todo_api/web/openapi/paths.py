"""Paths in the OpenAPI document, and their parameters."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from todo_api.web.fields import ITEM_ID, USER_ID

# A variable in Flask's rule: `<converter:name>` or `<name>`.
VARIABLE = re.compile("<(?:[^:<>]+:)?([^<>]+)>")


@cache
def path_template(rule: str) -> str:
    """Return Flask's rule in the form of the OpenAPI document: `/api/{user_id}/tasks`."""
    return VARIABLE.sub(r"{\1}", rule)


def path_parameters(rule: str) -> list[dict[str, Any]]:
    """Return the parameter objects of the ids in Flask's rule."""
    return [path_parameter(name) for name in VARIABLE.findall(rule)]


def path_parameter(name: str) -> dict[str, Any]:
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
            "examples": [USER_ID if is_user else ITEM_ID],
        },
    }
