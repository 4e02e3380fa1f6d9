"""Read responses with the models that datamodel-code-generator made, and print what they have."""

import json
from pathlib import Path

import models
from plain_values import plain
from pydantic import RootModel

MODELS = {
    "task": models.Task,
    "tasks": models.ListTasksOfUserResponse,
    "changes": models.Changes,
    "trash": models.ListTrashOfUserResponse,
    "conflict": models.TaskPreconditionFailed,
    "invalid": models.ProblemDetails,
}


def class_name(value):
    """Return the name of the model in a union."""
    return class_name(value.root) if isinstance(value, RootModel) else type(value).__name__


def main():
    responses = json.loads(Path("responses.json").read_text())
    read = {
        name: model.model_validate_json(json.dumps(responses[name]["body"]))
        for name, model in MODELS.items()
    }
    bodies = {name: value.model_dump(exclude_unset=True) for name, value in read.items()}
    classes = {
        "changes": [class_name(change) for change in read["changes"].changes],
        "trash": [class_name(entry) for entry in read["trash"].root],
    }
    print(json.dumps({"bodies": plain(bodies), "classes": classes}))


main()
