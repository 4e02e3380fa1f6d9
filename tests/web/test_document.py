"""The OpenAPI document describes every operation, value, header and example completely."""

import re
import sys
import uuid

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
    """Each operation with its path, its method, and all its parameters."""

    def resolve(parameter):
        name = parameter.get("$ref", "").rpartition("/")[2]
        return document["components"]["parameters"][name] if name else parameter

    return [
        operation
        | {
            "path": path,
            "method": method,
            "parameters": [
                resolve(parameter)
                for parameter in (*methods.get("parameters", ()), *operation["parameters"])
            ],
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]


def walk_objects(value, pointer=""):
    """Return every object in a JSON value with its JSON Pointer, except those in examples."""
    if isinstance(value, dict):
        yield pointer, value
        for name, child in value.items():
            if name not in ("example", "examples"):
                yield from walk_objects(child, f"{pointer}/{name}")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from walk_objects(child, f"{pointer}/{index}")


def resolve(document, reference):
    """Return the component that a reference names. Raise a KeyError if it does not exist."""
    value = document
    for name in reference.removeprefix("#/").split("/"):
        value = value[name]
    return value


def find_references(document, value):
    """Return all references in a JSON value, and in the components to which they lead."""
    references, pending = set(), [value]
    while pending:
        for _, part in walk_objects(pending.pop()):
            reference = part.get("$ref")
            if reference and reference not in references:
                references.add(reference)
                pending.append(resolve(document, reference))
    return references


def find_schemas(document, type_):
    schemas = [
        (pointer, schema)
        for pointer, schema in walk_objects(document)
        if type_ == schema.get("type") or type_ in (schema.get("type") or ())
        if not pointer.startswith("/components/securitySchemes") and "in" not in schema
    ]
    assert schemas
    return schemas


def subclasses(schema_class):
    for child in schema_class.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_operation_is_described_completely(document, operations):
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


def test_operation_ids_are_unique(operations):
    ids = [operation["operationId"] for operation in operations]

    assert len(set(ids)) == len(ids)


def test_every_string_has_a_maximum_length_and_a_format(document):
    for pointer, schema in find_schemas(document, "string"):
        if "enum" not in schema:
            assert "maxLength" in schema, pointer
            assert schema.keys() & {"pattern", "format"}, pointer


def test_every_integer_and_array_has_limits(document):
    for pointer, schema in find_schemas(document, "integer"):
        assert {"minimum", "maximum", "format"} <= schema.keys(), pointer
    for pointer, schema in find_schemas(document, "array"):
        assert "maxItems" in schema, pointer
    for pointer, schema in walk_objects(document):
        assert schema.get("type") != "number", pointer


def test_every_reference_has_a_component(document):
    references = 0
    for pointer, part in walk_objects(document):
        mapping = part.get("discriminator", {}).get("mapping", {})
        for reference in (*mapping.values(), *([part["$ref"]] if "$ref" in part else ())):
            assert resolve(document, reference), pointer
            references += 1
        assert set(mapping.values()) <= {one["$ref"] for one in part.get("oneOf", ())}, pointer
    assert references > 100


def test_request_schemas_are_closed_and_response_schemas_are_open(document, operations):
    requests = find_references(document, [each.get("requestBody") for each in operations])
    responses = find_references(document, [each["responses"] for each in operations])

    objects = find_schemas(document, "object")
    assert not requests & responses
    for pointer, schema in objects:
        if isinstance(schema.get("additionalProperties"), dict):
            continue  # The client chooses the members of the object.
        name = re.match("/components/schemas/[^/]+", pointer)[0]
        if f"#{name}" in requests:
            assert schema["additionalProperties"] is False, pointer
        else:
            assert f"#{name}" in responses
            assert "additionalProperties" not in schema, pointer


def test_every_example_of_a_schema_is_valid(document):
    for pointer, schema in walk_objects(document):
        for example in schema.get("examples", ()):
            if "type" not in schema:
                continue  # Every value is valid.
            if isinstance(example, str) and "enum" not in schema:
                assert len(example) <= schema["maxLength"], pointer
                assert re.search(schema.get("pattern", ""), example), pointer
            elif isinstance(example, int) and not isinstance(example, bool):
                assert schema["minimum"] <= example <= schema["maximum"], pointer
            elif "enum" in schema:
                assert example in schema["enum"], pointer
            elif "const" in schema:
                assert example is schema["const"], pointer


def test_every_body_has_a_valid_example(document):
    schema_classes = {schema_class.__name__: schema_class for schema_class in subclasses(Schema)}
    bodies = [
        (pointer, part)
        for pointer, part in walk_objects(document)
        if pointer.rpartition("/")[2].count("json")
    ]

    assert len(bodies) > 20
    for pointer, body in bodies:
        schema, example = body["schema"], body["example"]
        if schema.get("type") == "array":
            schema, (example,) = schema["items"], example
            schema = schema.get("oneOf", [schema])[0]
        schema_class = schema_classes[schema["$ref"].rpartition("/")[2]]
        assert schema_class().validate(example) == {}, pointer


def test_server_accepts_every_example_of_a_request(client, operations, make_task):
    accepted = 0
    for operation in operations:
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            task = make_task()
            lists_url = f"/api/{task['user_id']}/lists"
            list_, other_list = (client.post(lists_url, json={"name": "x"}).json for _ in "ab")
            parent = make_task(list_id=list_["id"])
            sibling = make_task(list_id=list_["id"])
            path = operation["path"].format(
                user_id=task["user_id"], task_id=task["id"], list_id=list_["id"], label="errand"
            )
            is_list = "/lists" in path
            # An example of a representation gets the values that the server has given this item.
            item, neighbour = (list_, other_list) if is_list else (task, sibling)
            is_of_item = re.search("{(task|list)_id}", operation["path"])
            own = {"id", "user_id", "revision"} if is_of_item else set()
            values = {name: item[name] for name in own}
            values |= {"list_id": list_["id"], "parent_id": parent["id"], "after": neighbour["id"]}
            sent = body["example"] | {
                name: value for name, value in values.items() if name in body["example"]
            }
            response = client.open(
                path, method=operation["method"], json=sent, content_type=media_type
            )
            assert response.status_code in (200, 201), (path, response.text)
            accepted += 1
    assert accepted == 14


def test_server_accepts_the_documented_defaults_of_new_resources(client, document):
    for name, plural in (("NewTask", "tasks"), ("NewList", "lists")):
        schema = document["components"]["schemas"][name]
        required = dict.fromkeys(schema["required"], "x")
        defaults = {
            member: declared["default"]
            for member, declared in schema["properties"].items()
            if "default" in declared
        }

        response = client.post(f"/api/{uuid.uuid4()}/{plural}", json=required | defaults)

        assert defaults
        assert response.status_code == 201, response.text


def test_every_response_has_the_documented_headers(client, document, make_task):
    def documented_headers(path, method, status):
        documented = document["paths"][path][method]["responses"][str(status)]
        name = documented.get("$ref", "").rpartition("/")[2]
        return set((document["components"]["responses"][name] if name else documented)["headers"])

    tasks_url, task_url = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
    for path, method, headers, status in (
        (tasks_url, "post", {}, 201),
        (tasks_url, "get", {}, 200),
        (tasks_url, "get", {"If-None-Match": "*"}, 304),
        (task_url, "get", {}, 200),
        (task_url, "get", {"If-None-Match": "*"}, 304),
        (task_url, "get", {"If-None-Match": "?"}, 400),
        (task_url, "put", {}, 200),
        (task_url, "put", {"If-None-Match": "*"}, 412),
        (task_url, "patch", {}, 200),
        (task_url, "patch", {"Content-Type": "text/plain"}, 415),
        (task_url, "patch", {"Accept": "text/plain"}, 406),
        (task_url + "/complete", "patch", {}, 200),
        (task_url + "/restore", "post", {}, 200),
        (task_url, "delete", {}, 204),
        ("/api/{user_id}", "delete", {}, 204),
        ("/api/session", "get", {}, 404),
        ("/livez", "get", {}, 200),
        ("/health", "get", {}, 200),
        ("/", "get", {}, 200),
        ("/", "get", {"Accept": "text/html"}, 302),
    ):
        make_task()
        task = make_task()
        response = client.open(
            path.format(user_id=task["user_id"], task_id=task["id"]),
            method=method.upper(),
            query_string={"limit": 1}
            if (path, method, status) == (tasks_url, "get", 200)
            else None,
            json={"title": "Buy oats"}
            if method in ("post", "put") and path in (tasks_url, task_url)
            else {}
            if method == "patch"
            else None,
            headers=headers,
        )
        assert response.status_code == status, (path, method, response.text)
        required = documented_headers(path, method, status) - {"Idempotent-Replayed"}
        assert required <= set(response.headers.keys()), (path, method, status)
        optional = {"Accept-Patch", "ETag", "Link", "Location", "Retry-After"} & set(
            response.headers.keys()
        )
        assert optional <= documented_headers(path, method, status), (path, method, status)


def test_headers_and_members_of_problems_are_documented(document):
    for name, response in document["components"]["responses"].items():
        header = HEADERS_OF_PROBLEM.get(int(re.search("[0-9]+", name)[0]))
        assert set(response["headers"]) == {"Cache-Control", "X-Request-Id"} | ({header} - {None})
    current = document["components"]["schemas"]["TaskPreconditionFailed"]["properties"]["current"]
    assert current["$ref"] == "#/components/schemas/Task"
    conflict = document["components"]["schemas"]["ConflictDetails"]["properties"]
    assert {"limit", "used"} <= conflict.keys()


def test_pattern_of_titles_and_python_have_the_same_white_space():
    for code in range(sys.maxunicode + 1):
        blank = not re.search(NOT_BLANK, chr(code))

        assert blank == (chr(code).isspace() or code == 0), hex(code)


def test_lengths_of_ids_and_times_are_as_documented(client, task):
    body = client.get(task.url).json

    for name, format_ in (("id", "uuid"), ("created_at", "date-time")):
        minimum, maximum = LENGTHS_OF_FORMAT[format_]
        assert minimum <= len(body[name]) <= maximum
