"""The document says all that a client has to know, of every operation and of every value."""

import re
import sys

import pytest
from marshmallow import Schema

from todo_api.web.fields import NOT_BLANK
from todo_api.web.openapi.schemas import LENGTHS_OF_FORMAT

HEADERS_OF_PROBLEM = {
    401: "WWW-Authenticate",
    412: "ETag",
    415: "Accept-Patch",
    503: "Retry-After",
}


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json


@pytest.fixture
def operations(document):
    """Each operation, with its path, its method and the parameters of its path among its own."""

    def resolved(parameter):
        name = parameter.get("$ref", "").rpartition("/")[2]
        return document["components"]["parameters"][name] if name else parameter

    return [
        operation
        | {
            "path": path,
            "method": method,
            "parameters": [
                resolved(parameter)
                for parameter in (*methods.get("parameters", ()), *operation["parameters"])
            ],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]


def parts(value, at=""):
    """Every object within a value of JSON, with its JSON Pointer; not what examples hold."""
    if isinstance(value, dict):
        yield at, value
        for name, below in value.items():
            if name not in ("example", "examples"):
                yield from parts(below, f"{at}/{name}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from parts(below, f"{at}/{index}")


def schemas_of(document, type_):
    found = [
        (at, schema)
        for at, schema in parts(document)
        if type_ == schema.get("type") or type_ in (schema.get("type") or ())
        if not at.startswith("/components/securitySchemes") and "in" not in schema
    ]
    assert found
    return found


def subclasses(shape):
    for below in shape.__subclasses__():
        yield below
        yield from subclasses(below)


def test_every_operation_is_told_in_full(document, operations):
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}

    assert len(operations) > 10
    for operation in operations:
        assert operation["summary"], operation["path"]
        assert operation["description"], operation["path"]
        assert re.fullmatch("[a-z]+([A-Z][a-z]+)*", operation["operationId"])
        assert set(operation["tags"]) <= tags
        assert "security" in operation
        for parameter in operation["parameters"]:
            assert parameter["description"], (operation["path"], parameter)
            assert parameter["schema"]["examples"], (operation["path"], parameter)


def test_no_two_operations_have_the_same_id(operations):
    ids = [operation["operationId"] for operation in operations]

    assert len(set(ids)) == len(ids)


def test_every_string_is_bounded_and_of_a_form(document):
    for at, schema in schemas_of(document, "string"):
        if "enum" not in schema:
            assert "maxLength" in schema, at
            assert schema.keys() & {"pattern", "format"}, at


def test_every_number_and_array_is_bounded(document):
    for at, schema in schemas_of(document, "integer"):
        assert {"minimum", "maximum", "format"} <= schema.keys(), at
    for at, schema in schemas_of(document, "array"):
        assert "maxItems" in schema, at
    for at, schema in parts(document):
        assert schema.get("type") != "number", at


def test_every_object_is_closed(document):
    for at, schema in schemas_of(document, "object"):
        assert schema["additionalProperties"] is False, at


def test_every_value_of_a_schema_has_an_example_that_it_allows(document):
    for at, schema in parts(document):
        for example in schema.get("examples", ()):
            if isinstance(example, str) and "enum" not in schema:
                assert len(example) <= schema["maxLength"], at
                assert re.search(schema.get("pattern", ""), example), at
            elif isinstance(example, int) and not isinstance(example, bool):
                assert schema["minimum"] <= example <= schema["maximum"], at
            elif "enum" in schema:
                assert example in schema["enum"], at


def test_every_body_has_an_example_that_its_schema_allows(document):
    shapes = {shape.__name__: shape for shape in subclasses(Schema)}
    bodies = [(at, part) for at, part in parts(document) if at.rpartition("/")[2].count("json")]

    assert len(bodies) > 20
    for at, body in bodies:
        schema, example = body["schema"], body["example"]
        if schema.get("type") == "array":
            schema, (example,) = schema["items"]["oneOf"][0], example
        shape = shapes[schema["$ref"].rpartition("/")[2]]
        assert shape().validate(example) == {}, at


def test_every_example_of_a_request_is_one_that_is_accepted(client, operations, make_task):
    sent = 0
    for operation in operations:
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            task = make_task()
            path = operation["path"].format(user_id=task["user_id"], task_id=task["id"])
            answer = client.open(
                path, method=operation["method"], json=body["example"], content_type=media_type
            )
            assert answer.status_code in (200, 201), (path, answer.text)
            sent += 1
    assert sent == 5


def test_every_answer_has_the_headers_that_it_is_said_to_have(client, document, make_task):
    def said(path, method, status):
        response = document["paths"][path][method]["responses"][str(status)]
        name = response.get("$ref", "").rpartition("/")[2]
        return set((document["components"]["responses"][name] if name else response)["headers"])

    tasks, one = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
    for path, method, headers, status in (
        (tasks, "post", {}, 201),
        (tasks, "get", {}, 200),
        (tasks, "get", {"If-None-Match": "*"}, 304),
        (one, "get", {}, 200),
        (one, "get", {"If-None-Match": "*"}, 304),
        (one, "get", {"If-None-Match": "?"}, 400),
        (one, "put", {}, 200),
        (one, "put", {"If-None-Match": "*"}, 412),
        (one, "patch", {}, 200),
        (one, "patch", {"Content-Type": "text/plain"}, 415),
        (one, "patch", {"Accept": "text/plain"}, 406),
        (one + "/complete", "patch", {}, 200),
        (one + "/restore", "post", {}, 409),
        (one, "delete", {}, 204),
        ("/api/{user_id}", "delete", {}, 204),
        ("/api/session", "get", {}, 404),
        ("/livez", "get", {}, 200),
        ("/health", "get", {}, 200),
        ("/", "get", {}, 200),
        ("/", "get", {"Accept": "text/html"}, 302),
    ):
        make_task()
        task = make_task()
        answer = client.open(
            path.format(user_id=task["user_id"], task_id=task["id"]),
            method=method.upper(),
            query_string={"limit": 1} if (path, method, status) == (tasks, "get", 200) else None,
            json={"title": "Buy oats"}
            if method in ("post", "put") and path in (tasks, one)
            else {}
            if method == "patch"
            else None,
            headers=headers,
        )
        assert answer.status_code == status, (path, method, answer.text)
        always = said(path, method, status) - {"Idempotent-Replayed"}
        assert always <= set(answer.headers.keys()), (path, method, status)
        unsaid = {"Accept-Patch", "ETag", "Link", "Location", "Retry-After"} & set(
            answer.headers.keys()
        )
        assert unsaid <= said(path, method, status), (path, method, status)


def test_what_a_problem_carries_besides_is_documented(document):
    for name, response in document["components"]["responses"].items():
        header = HEADERS_OF_PROBLEM.get(int(name.removeprefix("Problem")))
        assert set(response["headers"]) == {"Cache-Control", "X-Request-Id"} | ({header} - {None})
    current = document["components"]["schemas"]["ProblemWithCurrent"]["properties"]["current"]
    assert current["$ref"] == "#/components/schemas/Task"


def test_a_title_is_not_blank_by_the_same_white_space_as_the_server_has():
    for code in range(sys.maxunicode + 1):
        blank = not re.search(NOT_BLANK, chr(code))

        assert blank == (chr(code).isspace() or code == 0), hex(code)


def test_what_the_server_writes_is_within_the_lengths_of_its_formats(client, task):
    shown = client.get(task.url).json

    for name, format_ in (("id", "uuid"), ("created_at", "date-time")):
        least, most = LENGTHS_OF_FORMAT[format_]
        assert least <= len(shown[name]) <= most
