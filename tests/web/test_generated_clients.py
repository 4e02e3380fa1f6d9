"""Generated clients read real responses, also with members that their document does not have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, node, python
from tests.support.differences import assert_same_json

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "generated_clients"
ENVIRONMENT = ROOT / ".venv-clients"
TITLE = "Buy oat milk 🥛,\nÄpfel"

# Members that are null or empty by default.
MEMBERS = {
    "labels": ["Äpfel", "errand"],
    "due_date": "2026-11-21",
    "due_time": "09:30:00",
    "time_zone": "Europe/Berlin",
    "start_date": "2026-11-20",
    "metadata": {"source": "mail", "type": "task"},
}

UNKNOWN_MEMBERS: dict[str, Any] = {
    "unknown_text": "Not in the document",
    "unknown_number": 0.5,
    "unknown_null": None,
    "unknown_object": {"id": 1, "type": "unknown"},
    "unknown_array": [{"deleted": "unknown"}, []],
}


# Objects whose members belong to the client: all of them are known to be strings.
OBJECTS_OF_CLIENTS = {"metadata"}


def add_unknown_members(value: Any) -> Any:
    """Return the JSON value with unknown members in each object of the server."""
    match value:
        case dict():
            members = {
                name: member if name in OBJECTS_OF_CLIENTS else add_unknown_members(member)
                for name, member in value.items()
            }
            return members | UNKNOWN_MEMBERS
        case list():
            return [add_unknown_members(item) for item in value]
    return value


@pytest.fixture
def responses(client, tasks_url, make_task) -> dict[str, Any]:
    """Return the status and body of a response of each kind, by name."""
    changes_url = tasks_url.replace("/tasks", "/changes")
    deleted, changed = make_task(), make_task(title=TITLE, description="Two litres", **MEMBERS)
    make_task(description=None, completed=True)
    token = client.get(f"{changes_url}?since=0").json["next"]
    client.delete(deleted.url)
    stale = {"If-Match": f'"{changed["revision"]}"'}
    client.patch(changed.url, json={"description": "Three litres"})
    received = {
        "task": client.get(changed.url),
        "tasks": client.get(tasks_url),
        "changes": client.get(f"{changes_url}?since={token}"),
        "trash": client.get(tasks_url.replace("/tasks", "/trash")),
        "conflict": client.patch(changed.url, json={"title": "Buy oats"}, headers=stale),
        "invalid": client.post(tasks_url, json={"title": "", "due": "now"}),
    }
    stored = {
        name: {"status": response.status_code, "body": response.json}
        for name, response in received.items()
    }
    assert {name: response["status"] for name, response in stored.items()} == {
        "task": 200,
        "tasks": 200,
        "changes": 200,
        "trash": 200,
        "conflict": 412,
        "invalid": 422,
    }
    return stored


@pytest.fixture
def project(client, responses, tmp_path) -> Path:
    """Return a folder with the served document, the responses and the programs that read them."""
    shutil.copytree(
        FOLDER, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules")
    )
    (tmp_path / "openapi.json").write_bytes(client.get("/openapi.json").data)
    extended = {
        name: response | {"body": add_unknown_members(response["body"])}
        for name, response in responses.items()
    }
    (tmp_path / "responses.json").write_text(json.dumps(extended))
    return tmp_path


def run(project: Path, programs: Path, program: str, *arguments: str) -> str:
    """Run a program of the folder `programs`, or else one in PATH; return its output."""
    own = programs / program
    result = subprocess.run(
        [own if own.exists() else program, *arguments],
        cwd=project,
        env=os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def bodies_of(responses: dict[str, Any]) -> dict[str, Any]:
    return {name: response["body"] for name, response in responses.items()}


def test_openapi_python_client_reads_responses_with_unknown_members(project, responses):
    programs = python.install(FOLDER / "requirements.lock", ENVIRONMENT)
    generate = ["generate", "--path", "openapi.json", "--meta", "none", "--fail-on-warning"]
    run(project, programs, "openapi-python-client", *generate, "--output-path", "client")

    read = json.loads(run(project, programs, "python", "read_attrs.py"))

    assert_same_json(read["bodies"], bodies_of(responses), "What was read is not what was sent.")
    assert read["classes"]["changes"] == ["TaskTombstone", "ChangedTask"]
    assert read["classes"]["trash"] == ["TrashedTask"]


def test_pydantic_models_read_responses_with_unknown_members(project, responses):
    programs = python.install(FOLDER / "requirements.lock", ENVIRONMENT)
    run(
        project,
        programs,
        "datamodel-codegen",
        *("--input", "openapi.json", "--input-file-type", "openapi"),
        *("--openapi-scopes", "schemas", "paths", "--use-operation-id-as-name"),
        *("--output", "models.py", "--output-model-type", "pydantic_v2.BaseModel"),
        *("--target-python-version", "3.11", "--use-annotated", "--formatters", "builtin"),
    )

    read = json.loads(run(project, programs, "python", "read_pydantic.py"))

    assert_same_json(read["bodies"], bodies_of(responses), "What was read is not what was sent.")
    assert read["classes"]["changes"] == ["TaskTombstone", "ChangedTask"]
    assert read["classes"]["trash"] == ["TrashedTask"]


def test_typescript_client_reads_responses_with_unknown_members(project, responses):
    node.install(FOLDER)
    (project / "node_modules").symlink_to(FOLDER / "node_modules")
    programs = FOLDER / "node_modules" / ".bin"
    run(project, programs, "openapi-ts", "--input", "./openapi.json", "--output", "client")
    run(project, programs, "tsc")

    read = json.loads(run(project, programs, "node", "built/read.js"))

    bodies = bodies_of(responses)
    extended = {name: add_unknown_members(body) for name, body in bodies.items()}
    assert_same_json(read["bodies"], extended, "What was read is not what was sent.")
    (deleted,) = bodies["trash"]
    assert read["summaries"] == {
        "task": TITLE,
        "tasks": ["Buy oat milk", TITLE],
        "changes": [deleted["deleted_at"], TITLE],
        "trash": ["task Buy oat milk"],
        "conflict": TITLE,
        "invalid": ["/title", "/due"],
    }
