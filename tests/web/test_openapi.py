"""The contract as a document: it is the one that is committed, and answers keep it."""

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


def test_the_committed_document_is_not_stale(document, request):
    committed = json.loads((request.config.rootpath / "docs" / "openapi.json").read_text())

    assert_same_json(
        document, committed, "docs/openapi.json is not what the application serves: make openapi"
    )


def test_the_document_says_how_to_get_a_token(document):
    """The page shows both: the description at its top, the scheme's behind `Authorize`."""
    scheme = document["components"]["securitySchemes"]["bearer"]

    assert "make token USER_ID=" in document["info"]["description"]
    assert "make token" in scheme["description"]


def test_the_document_is_openapi_3_1(document):
    assert document["openapi"] == "3.1.0"


def test_what_postgresql_writes_is_what_the_schema_says(client, task, tasks_url):
    """The statement and the schema are two places; this holds them together."""
    for shown in (client.get(task.url).json, client.get(tasks_url).json[0]):
        assert list(shown) == list(TASK.schemas.item().fields)
        assert TASK.schemas.item().load(shown, unknown=RAISE)["title"] == "Buy oat milk"


def test_a_problem_is_what_the_schema_says(client, tasks_url):
    answer = client.post(tasks_url, json={"title": ""})

    assert ProblemDetails().load(answer.json, unknown=RAISE)["status"] == 422


def test_both_kinds_of_patch_are_documented(document):
    operation = document["paths"]["/api/{user_id}/tasks/{task_id}"]["patch"]

    assert set(operation["requestBody"]["content"]) == {
        "application/json",
        "application/merge-patch+json",
    }


def test_the_bounds_of_a_title_are_documented(document):
    title = document["components"]["schemas"]["NewTask"]["properties"]["title"]

    assert (title["minLength"], title["maxLength"]) == (1, 255)


def test_the_page_and_all_that_it_loads_come_from_us(client):
    page = client.get("/docs", buffered=True)
    linked = re.findall(r'(?:src|href)="([^"]*)"', page.text)

    assert page.mimetype == "text/html"
    assert len(linked) == 4
    for link in linked:
        assert client.get(f"/{link}", buffered=True).status_code == 200
