"""Read responses with the client that openapi-python-client generated, and print what it has."""

import json
from pathlib import Path
from uuid import UUID

import httpx
from client import Client
from client.api.tasks import create_task, get_task, list_tasks_of_user, patch_task
from client.api.users import list_changes_of_user, list_trash_of_user
from client.models import NewTask, TaskPatch
from plain_values import plain

USER_ID = UUID("5f0c2a5e-8f3b-4f6e-9d53-0c9a4f1f7a10")
TASK_ID = UUID("019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21")


def client_of(stored):
    """Return a client that receives the stored response to every request."""
    transport = httpx.MockTransport(lambda _: httpx.Response(stored["status"], json=stored["body"]))
    return Client("http://localhost", httpx_args={"transport": transport})


def main():
    responses = json.loads(Path("responses.json").read_text())
    clients = {name: client_of(stored) for name, stored in responses.items()}
    changes = list_changes_of_user.sync(USER_ID, client=clients["changes"], since="0")
    trash = list_trash_of_user.sync(USER_ID, client=clients["trash"])
    update = TaskPatch(title="Buy oats")
    new = NewTask(title="")
    bodies = {
        "task": get_task.sync(USER_ID, TASK_ID, client=clients["task"]),
        "tasks": list_tasks_of_user.sync(USER_ID, client=clients["tasks"]),
        "changes": changes,
        "trash": trash,
        "conflict": patch_task.sync(USER_ID, TASK_ID, client=clients["conflict"], body=update),
        "invalid": create_task.sync(USER_ID, client=clients["invalid"], body=new),
    }
    classes = {
        "changes": [type(change).__name__ for change in changes.changes],
        "trash": [type(entry).__name__ for entry in trash],
    }
    print(json.dumps({"bodies": plain(bodies), "classes": classes}))


main()
