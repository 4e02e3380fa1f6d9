"""The OpenAPI document equals the committed one, and responses match its schemas."""

import json
import re

import pytest
from marshmallow import RAISE

from tests.support.differences import assert_same_json
from todo_api.tasks.fields import TASK
from todo_api.web.schemas import ProblemDetails


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json


def test_committed_document_is_up_to_date(document, request):
    committed = json.loads((request.config.rootpath / "docs" / "openapi.json").read_text())

    assert_same_json(document, committed, "docs/openapi.json is out of date. Run: make openapi")


def test_document_is_openapi_3_1(document):
    assert document["openapi"] == "3.1.0"


def test_representation_of_a_task_matches_its_schema(client, task, tasks_url):
    """A trigger of PostgreSQL writes the representation, which must match the schema in Python."""
    for body in (client.get(task.url).json, client.get(tasks_url).json[0]):
        assert list(body) == list(TASK.schemas.item().fields)
        assert TASK.schemas.item().load(body, unknown=RAISE)["title"] == "Buy oat milk"


def test_problem_matches_its_schema(client, tasks_url):
    response = client.post(tasks_url, json={"title": ""})

    assert ProblemDetails().load(response.json, unknown=RAISE)["status"] == 422


def test_both_kinds_of_patch_are_documented(document):
    operation = document["paths"]["/api/{user_id}/tasks/{task_id}"]["patch"]

    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "application/merge-patch+json",
    }


def test_length_limits_of_a_title_are_documented(document):
    title = document["components"]["schemas"]["NewTask"]["properties"]["title"]

    assert (title["minLength"], title["maxLength"]) == (1, 255)


def test_docs_page_loads_only_files_of_this_server(client):
    page = client.get("/docs", buffered=True)
    linked = re.findall(r'(?:src|href)="([^"]*)"', page.text)

    assert page.mimetype == "text/html"
    assert len(linked) == 4
    for link in linked:
        assert client.get(f"/{link}", buffered=True).status_code == 200
