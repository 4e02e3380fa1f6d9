"""Tests of every field, filter and sort key of every resource.

They run for the resources of the application, and for the resource `widgets`, which has fields of
every type. They test a new field or resource without a change of this file.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest

from tests.support.api import pages
from tests.support.differences import assert_same_lines
from tests.support.postgresql import migrate
from tests.support.samples import breaking_values, sample_values
from tests.support.widgets import WIDGET, add_widget_routes, create_widgets_table
from todo_api.app import RESOURCES
from todo_api.resources.types import EnumType

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from psycopg import Connection

    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

RESOURCES_AND_WIDGET = (*RESOURCES, WIDGET)
EACH_RESOURCE = [pytest.param(resource, id=resource.name) for resource in RESOURCES_AND_WIDGET]
EACH_FIELD = [
    pytest.param(resource, field, id=f"{resource.name}-{field.name}")
    for resource in RESOURCES_AND_WIDGET
    for field in resource.fields
]
EACH_RULE = [
    pytest.param(resource, field, ending, id=f"{resource.name}-{field.name}-{ending}")
    for resource in RESOURCES_AND_WIDGET
    for field in resource.fields
    for ending in field.type.rules(field.name)
]
EACH_SORT = [
    pytest.param(resource, prefix + name, id=f"{resource.name}-{prefix}{name}")
    for resource in RESOURCES_AND_WIDGET
    for name in resource.sort_keys
    for prefix in ("", "-")
]
EACH_FILTER = [
    pytest.param(resource, name, id=f"{resource.name}-{name}")
    for resource in RESOURCES_AND_WIDGET
    for name in resource.filters
]

# The comparison of a filter, by the part of the filter's name that follows the field's name.
COMPARISON_BY_ENDING = {
    "": operator.eq,
    "_min": operator.ge,
    "_max": operator.le,
    "_after": operator.gt,
    "_before": operator.lt,
}
SEARCH = "q"
ROWS = 9


@dataclass
class Items:
    """A client for the items of one user and one resource."""

    client: FlaskClient
    connection: Connection
    resource: Resource
    url: str
    feeds_url: str

    def required(self) -> dict[str, Any]:
        return {field.name: field.example for field in self.resource.fields if field.required}

    def create(self, **values: Any) -> dict[str, Any]:
        response = self.client.post(self.url, json=self.required() | values)
        assert response.status_code == 201, response.text
        return response.json

    def fill(self) -> list[dict[str, Any]]:
        """Create items with different values, including null, and then change the first one."""
        samples = {field.name: sample_values(field) for field in self.resource.fields}
        first, *others = [
            self.create(**{name: values[row % len(values)] for name, values in samples.items()})
            for row in range(ROWS)
        ]
        url = f"{self.url}/{first['id']}"
        assert self.client.delete(url).status_code == 204
        return [self.client.post(f"{url}/restore").json, *others]

    def count(self, **query: Any) -> int:
        """Return the number of items that pass these filters."""
        texts = {name: query_text(value) for name, value in query.items()}
        response = self.client.get(f"{self.url}/count?{urlencode(texts)}")
        assert response.status_code == 200, response.text
        return response.json["count"]

    def feed(self, path: str) -> Any:
        """Return what a route that spans all resources of the user has."""
        response = self.client.get(f"{self.feeds_url}/{path}")
        assert response.status_code == 200, response.text
        return response.json

    def list(self, **query: Any) -> list[list[dict[str, Any]]]:
        """Return the pages of the list, up to one page more than the number of items."""
        texts = {name: query_text(value) for name, value in query.items()}
        return list(islice(pages(self.client, f"{self.url}?{urlencode(texts)}"), ROWS + 1))


def query_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


@pytest.fixture(scope="module")
def widgets_url(new_database) -> str:
    url = new_database("widgets")
    migrate(url)
    create_widgets_table(url)
    return url


@pytest.fixture
def items(request, resource, user_id):
    """The items of the resource that is the parameter of the test."""
    if resource is not WIDGET:
        client, connection = (request.getfixturevalue(name) for name in ("client", "connection"))
        url = f"/api/{user_id}"
        yield Items(client, connection, resource, f"{url}/{resource.plural}", url)
        return
    url = request.getfixturevalue("widgets_url")
    app = request.getfixturevalue("make_app")(DATABASE_URL=url)
    add_widget_routes(app)
    with psycopg.connect(url, autocommit=True) as connection:
        user_url = f"/api/{user_id}"
        yield Items(
            app.test_client(), connection, resource, f"{user_url}/widgets", f"{user_url}/all"
        )


@pytest.mark.parametrize("resource", EACH_RESOURCE)
def test_resource_has_every_route(items, resource):
    endpoints = {
        endpoint.rpartition(".")[2] for endpoint in items.client.application.view_functions
    }

    assert {
        f"create_{resource.name}",
        f"list_{resource.plural}_of_user",
        f"count_{resource.plural}_of_user",
        f"get_{resource.name}",
        f"put_{resource.name}",
        f"patch_{resource.name}",
        f"delete_{resource.name}",
        f"restore_{resource.name}",
        "list_changes_of_user",
        "list_trash_of_user",
        "empty_trash_of_user",
    } <= endpoints, "Register a blueprint with the routes of todo_api/resources/views.py in app.py."


@pytest.mark.parametrize("resource", EACH_RESOURCE)
def test_every_field_is_in_every_schema_and_in_the_representation(items, resource):
    fields = resource.field_names
    members = ["id", "user_id", *fields, "created_at", "updated_at", "revision"]
    created = items.create()
    listed = items.list(limit=1)[0][0]
    (changed,) = items.feed("changes?since=0")["changes"]
    since = items.feed("changes?since=0")["next"]
    items.client.delete(f"{items.url}/{created['id']}")
    (tombstone,) = items.feed(f"changes?since={since}")["changes"]
    (trashed,) = items.feed("trash")

    for request_schema, expected in (
        ("creation", ["id", *fields]),
        ("put", members),
        ("patch", members),
    ):
        assert_same_lines(
            sorted(getattr(resource.schemas, request_schema)().fields),
            sorted(expected),
            f"{resource.name}.{request_schema}: see todo_api/resources/schemas.py.",
        )
    for item in (created, listed, changed["value"], trashed["value"]):
        assert_same_lines(item, members, "See members in todo_api/resources/statements.py.")
    for entry in (changed, tombstone, trashed):
        assert (entry["type"], entry["id"]) == (resource.name, created["id"])
    assert_same_lines(changed, ["type", "id", "revision", "deleted", "value"], "See changes.py.")
    assert_same_lines(
        tombstone, ["type", "id", "revision", "deleted", "deleted_at"], "See changes.py."
    )
    change_schema, tombstone_schema = resource.schemas.change.schemas
    for schema, item in (
        (resource.schemas.item, created),
        (change_schema, changed),
        (tombstone_schema, tombstone),
        (resource.schemas.trashed, trashed),
    ):
        assert_same_lines(
            sorted(schema().fields),
            sorted(item),
            f"{schema.__name__}: see todo_api/resources/schemas.py.",
        )


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_post_patch_and_put_store_every_valid_value_of_a_field(items, field):
    values = [field.example, *sample_values(field)]
    created, patched, replaced = [], [], []

    item = items.create()
    url = f"{items.url}/{item['id']}"
    for value in values:
        created.append(items.create(**{field.name: value})[field.name])
        response = items.client.patch(url, json={field.name: value})
        assert response.status_code == 200, response.text
        patched.append(items.client.get(url).json[field.name])
        response = items.client.put(url, json=items.required() | {field.name: value})
        assert response.status_code == 200, response.text
        replaced.append(response.json[field.name])

    for actual in (created, patched, replaced):
        assert_same_lines(
            actual, values, f"See {type(field.type).__name__} in todo_api/resources/types.py."
        )


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_missing_field_gets_its_default_or_is_kept_or_is_an_error(items, field):
    other = next(value for value in sample_values(field) if value != field.default)
    item = items.create(**{field.name: other})
    body = {name: value for name, value in items.required().items() if name != field.name}

    created = items.client.post(items.url, json=body)
    replaced = items.client.put(f"{items.url}/{item['id']}", json=body)
    patched = items.client.patch(f"{items.url}/{item['id']}", json={})

    missing = [{"pointer": f"/{field.name}", "detail": "Missing data for required field."}]
    if field.required:
        assert (created.status_code, created.json["errors"]) == (422, missing)
        assert (replaced.status_code, replaced.json["errors"]) == (422, missing)
    else:
        assert created.json[field.name] == field.default
        assert replaced.json[field.name] == other
        assert patched.json == replaced.json


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_null_is_refused_unless_the_field_is_nullable(items, field):
    response = items.client.post(items.url, json=items.required() | {field.name: None})

    if field.nullable:
        assert (response.status_code, response.json[field.name]) == (201, None)
    else:
        errors = [{"pointer": f"/{field.name}", "detail": "Field may not be null."}]
        assert (response.status_code, response.json["errors"]) == (422, errors)


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_null_in_a_patch_sets_the_default(items, field):
    other = next(value for value in sample_values(field) if value != field.default)
    item = items.create(**{field.name: other})
    url = f"{items.url}/{item['id']}"

    response = items.client.patch(url, json={field.name: None})

    if field.required or not field.is_reset_by_null:
        errors = [{"pointer": f"/{field.name}", "detail": "Field may not be null."}]
        assert (response.status_code, response.json["errors"]) == (422, errors)
        assert items.client.get(url).json == item
    else:
        new = {name: response.json[name] for name in ("revision", "updated_at")}
        assert (response.status_code, response.json) == (
            200,
            item | {field.name: field.default} | new,
        )


def test_samples_have_an_invalid_value_for_every_rule():
    fields = [field for resource in RESOURCES_AND_WIDGET for field in resource.fields]

    assert_same_lines(
        [f"{field.name} {ending}" for field in fields for ending in breaking_values(field)],
        [f"{field.name} {ending}" for field in fields for ending in field.type.rules(field.name)],
        "Add a value that breaks the rule to breaking_values in tests/support/samples.py.",
    )


@pytest.mark.parametrize(("resource", "field", "ending"), EACH_RULE)
def test_schema_and_database_enforce_every_rule(items, resource, field, ending):
    """The schema refuses an invalid value, or strips white space; the database refuses it."""
    value, rule = breaking_values(field)[ending], field.type.rules(field.name)[ending]
    item = items.create()

    response = items.client.patch(f"{items.url}/{item['id']}", json={field.name: value})
    with pytest.raises(psycopg.errors.CheckViolation) as error:
        items.connection.execute(
            f"UPDATE {resource.plural} SET {field.name} = %s WHERE id = %s", (value, item["id"])
        )

    pointer = f"/{field.name}"
    if response.status_code == 422:
        assert response.json["errors"] == [{"pointer": pointer, "detail": rule.detail}]
    else:
        assert response.json[field.name] != value
    constraint = error.value.diag.constraint_name
    assert constraint == f"ck_{resource.plural}_{field.name}_{ending}"
    assert resource.constraints[constraint] == (pointer, rule.detail)


def sort_rows(resource: Resource, rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Sort as lists do: null is after every value, and the id decides between equal values."""
    name = sort.removeprefix("-")
    type_ = resource.by_name[name].type

    def key(row: dict[str, Any]) -> tuple[bool, Any, str]:
        value = row[name]
        if isinstance(type_, EnumType) and value is not None:
            value = type_.values.index(value)
        return value is None, 0 if value is None else value, row["id"]

    return sorted(rows, key=key, reverse=sort.startswith("-"))


@pytest.mark.parametrize(("resource", "sort"), EACH_SORT)
def test_pages_continue_every_sort_order(items, resource, sort):
    rows = items.fill()

    listed = items.list(sort=sort, limit=1)

    field = resource.by_name[sort.removeprefix("-")]
    assert_same_lines(
        [row for page in listed for row in page],
        sort_rows(resource, rows, sort),
        f"See sort_key of {type(field.type).__name__} in todo_api/resources/types.py.",
    )


def filtered_field(resource: Resource, name: str) -> tuple[Field, str]:
    """Return the field that a filter compares, and the end of the filter's name."""
    for field in resource.by_name.values():
        if field.is_filterable and name in field.type.filters(
            resource.table.c[field.name], field.example
        ):
            # Filters of a time leave out the ending _at: created_after.
            stem = field.name if name.startswith(field.name) else field.name.removesuffix("_at")
            return field, name.removeprefix(stem)
    return pytest.fail(f"{name}: add its field to filtered_field in tests/test_resources.py")


@pytest.mark.parametrize(("resource", "name"), EACH_FILTER)
def test_every_filter_returns_and_counts_the_matching_rows(items, resource, name):
    rows = items.fill()
    if name == SEARCH:
        values = {
            row[field][1:4].upper() for field in resource.search for row in rows if row[field]
        }

        def passes(row: dict[str, Any], value: Any) -> bool:
            return any(value.lower() in (row[field] or "").lower() for field in resource.search)
    else:
        field, ending = filtered_field(resource, name)
        assert ending in COMPARISON_BY_ENDING, (
            f"{name}: add its comparison to COMPARISON_BY_ENDING in this file."
        )
        values = {row[field.name] for row in rows} - {None}

        def passes(row: dict[str, Any], value: Any) -> bool:
            return row[field.name] is not None and COMPARISON_BY_ENDING[ending](
                row[field.name], value
            )

    has_partial_match = False
    for value in sorted(filter(lambda value: value != "", values)):
        (page,) = items.list(**{name: value}, sort="created_at") or [[]]
        in_order = sort_rows(resource, rows, "created_at")
        expected = [row for row in in_order if passes(row, value)]
        assert items.count(**{name: value}) == len(expected)
        assert_same_lines(
            page,
            expected,
            f"?{name}={value}: see filters in todo_api/resources/types.py or resource.py.",
        )
        has_partial_match = has_partial_match or 0 < len(expected) < ROWS
    assert has_partial_match, (
        "Each value matches all rows or none. Add sample values that match some."
    )


@pytest.mark.parametrize("resource", EACH_RESOURCE)
@pytest.mark.usefixtures("resource")
def test_every_member_of_a_representation_can_be_sent_back(items):
    item = items.create()
    url = f"{items.url}/{item['id']}"

    for method in ("PUT", "PATCH"):
        response = items.client.open(url, method=method, json=item)
        assert (response.status_code, response.json) == (200, item)


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_creation_with_an_id_is_compared_by_every_field(items, field):
    values = [value for value in sample_values(field) if value != field.example]
    item = items.create(**{field.name: field.example})
    body = items.required() | {"id": item["id"]}

    repeated = items.client.post(items.url, json=body | {field.name: field.example})
    conflicts = [items.client.post(items.url, json=body | {field.name: value}) for value in values]

    assert (repeated.status_code, repeated.json) == (201, item)
    assert values
    assert {response.status_code for response in conflicts} == {409}
