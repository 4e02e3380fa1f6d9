"""Tests of every field, filter and sort key of every resource.

They run for the resources of the application, and for the resource `widgets`, which has fields of
every type. They test a new field or resource without a change of this file.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.api import pages
from tests.support.differences import assert_same_lines
from tests.support.postgresql import migrate
from tests.support.samples import (
    breaking_values,
    has_samples,
    patched_value,
    sample_row,
    sample_values,
    with_companions,
)
from tests.support.widgets import WIDGET, add_widget_routes, create_widgets_table
from todo_api.app import RESOURCES, create_app
from todo_api.resources.collection_types import LabelsType
from todo_api.resources.types import EnumType

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask.testing import FlaskClient
    from psycopg import Connection

    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

RESOURCES_AND_WIDGET = (*RESOURCES, WIDGET)
EACH_RESOURCE = [pytest.param(resource, id=resource.name) for resource in RESOURCES_AND_WIDGET]
EACH_FIELD = [
    pytest.param(resource, field, id=f"{resource.name}-{field.name}")
    for resource in RESOURCES_AND_WIDGET
    for field in resource.writable_fields
    if has_samples(field)
]
EACH_READ_ONLY_FIELD = [
    pytest.param(resource, field, id=f"{resource.name}-{field.name}")
    for resource in RESOURCES_AND_WIDGET
    for field in resource.fields
    if field.is_read_only
]
EACH_RULE = [
    pytest.param(resource, field, ending, id=f"{resource.name}-{field.name}-{ending}")
    for resource in RESOURCES_AND_WIDGET
    for field in resource.writable_fields
    for ending in field.type.rules(field.name)
]
EACH_SORT = [
    pytest.param(resource, prefix + name, id=f"{resource.name}-{prefix}{name}")
    for resource in RESOURCES_AND_WIDGET
    for name in resource.sort_keys
    for prefix in ("", "-")
]
# Filters whose values are ids of other rows, or whose result depends on other rows. They have their
# own tests, in tests/tasks/.
FILTERS_BY_OTHER_ROWS = {("task", "list_id"), ("task", "parent_id"), ("task", "archived")}
EACH_FILTER = [
    pytest.param(resource, name, id=f"{resource.name}-{name}")
    for resource in RESOURCES_AND_WIDGET
    for name in resource.filters
    if (resource.name, name) not in FILTERS_BY_OTHER_ROWS
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
# For the sort keys that need one of these filters: values that all rows of these tests pass.
OF_ALL_ROWS = {"list_id": "inbox"}
# For each filter by labels: how the labels of a row compare with those of the filter.
LABEL_FILTERS = {"label": set.issuperset, "label_any": set.intersection}
ROWS = 9


def passes_due(row: dict[str, Any], word: str) -> bool:
    """Return whether a task passes the filter. No sample date is near to today."""
    if row["due_date"] is None:
        return word == "none"
    today = datetime.now(UTC).date().isoformat()
    return {
        "today": False,
        "overdue": row["due_date"] < today and not row["completed"],
        "upcoming": row["due_date"] > today,
        "none": False,
    }[word]


def passes_started(row: dict[str, Any], is_started: str) -> bool:
    today = datetime.now(UTC).date().isoformat()
    return (row["start_date"] is None or row["start_date"] <= today) == (is_started == "true")


# The filters that belong to no single field: their values, and whether a row passes.
MORE_FILTERS: dict[tuple[str, str], tuple[set[str], Callable[[dict[str, Any], str], bool]]] = {
    ("task", "due"): ({"today", "overdue", "upcoming", "none"}, passes_due),
    ("task", "started"): ({"true", "false"}, passes_started),
}


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
        first, *others = [self.create(**sample_row(self.resource, row)) for row in range(ROWS)]
        url = f"{self.url}/{first['id']}"
        assert self.client.delete(url).status_code in (200, 204)
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


@pytest.fixture(scope="module")
def widgets_app(make_settings, widgets_url, log_stream):  # noqa: ARG001  logging comes first
    app = create_app(make_settings(DATABASE_URL=widgets_url))
    add_widget_routes(app)
    yield app
    app.services.pool.close()


@pytest.fixture
def items(request, resource, user_id):
    """The items of the resource that is the parameter of the test."""
    if resource is not WIDGET:
        client, connection = (request.getfixturevalue(name) for name in ("client", "connection"))
        url = f"/api/{user_id}"
        yield Items(client, connection, resource, f"{url}/{resource.plural}", url)
        return
    url = request.getfixturevalue("widgets_url")
    app = request.getfixturevalue("widgets_app")
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
    fields = resource.writable_names
    members = ["id", "user_id", *resource.field_names, "created_at", "updated_at", "revision"]
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
def test_post_patch_and_put_store_every_valid_value_of_a_field(items, resource, field):
    values = [field.example, *sample_values(field)]
    created, patched, replaced, expected_patched = [], [], [], []

    item = items.create()
    url = f"{items.url}/{item['id']}"
    for value in values:
        body = with_companions(resource, field, value)
        created.append(items.create(**body)[field.name])
        before = items.client.get(url).json[field.name]
        expected_patched.append(patched_value(field, before, value))
        response = items.client.patch(url, json=body)
        assert response.status_code == 200, response.text
        patched.append(items.client.get(url).json[field.name])
        response = items.client.put(url, json=items.required() | body)
        assert response.status_code == 200, response.text
        replaced.append(response.json[field.name])

    for actual, expected in (
        (created, values),
        (patched, expected_patched),
        (replaced, values),
    ):
        assert_same_lines(
            actual, expected, f"See {type(field.type).__name__} in todo_api/resources/types.py."
        )


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_missing_field_gets_its_default_or_is_kept_or_is_an_error(items, resource, field):
    other = next(value for value in sample_values(field) if value != field.default)
    item = items.create(**with_companions(resource, field, other))
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
def test_null_is_refused_unless_the_field_is_nullable(items, resource, field):
    body = items.required() | with_companions(resource, field, None)

    response = items.client.post(items.url, json=body)

    if field.nullable:
        assert (response.status_code, response.json[field.name]) == (201, None)
    else:
        errors = [{"pointer": f"/{field.name}", "detail": "Field may not be null."}]
        assert (response.status_code, response.json["errors"]) == (422, errors)


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_null_in_a_patch_sets_the_default(items, resource, field):
    other = next(value for value in sample_values(field) if value != field.default)
    item = items.create(**with_companions(resource, field, other))
    url = f"{items.url}/{item['id']}"
    body = with_companions(resource, field, None)

    response = items.client.patch(url, json=body)

    if field.required or not field.is_reset_by_null:
        errors = [{"pointer": f"/{field.name}", "detail": "Field may not be null."}]
        assert (response.status_code, response.json["errors"]) == (422, errors)
        assert items.client.get(url).json == item
    else:
        read_only = [field.name for field in resource.by_name.values() if field.is_read_only]
        new = {name: response.json[name] for name in ("revision", *read_only)}
        expected = item | new | body | {field.name: field.default}
        assert (response.status_code, response.json) == (200, expected)


@pytest.mark.parametrize(("resource", "field"), EACH_READ_ONLY_FIELD)
@pytest.mark.usefixtures("resource")
def test_read_only_field_is_refused_in_a_post_and_ignored_otherwise(items, field):
    item = items.create()
    url, sent = f"{items.url}/{item['id']}", {field.name: field.example}

    created = items.client.post(items.url, json=items.required() | sent)
    changed = [
        items.client.open(url, method=method, json=items.required() | sent)
        for method in ("PUT", "PATCH")
    ]

    errors = [{"pointer": f"/{field.name}", "detail": "Is read-only."}]
    assert (created.status_code, created.json["errors"]) == (422, errors)
    assert [(response.status_code, response.json) for response in changed] == [(200, item)] * 2


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
            f"UPDATE {resource.plural} SET {field.name} = %s WHERE id = %s",
            (Jsonb(value) if isinstance(value, dict) else value, item["id"]),
        )

    pointer = f"/{field.name}"
    if response.status_code == 422:
        assert response.json["errors"] == [{"pointer": pointer, "detail": rule.detail}]
    else:
        assert response.json[field.name] != value
    constraint = error.value.diag.constraint_name
    assert constraint == f"ck_{resource.plural}_{field.name}_{ending}"
    assert resource.constraints[constraint] == {field.name: rule.detail}


def sort_rows(resource: Resource, rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Sort as lists do: null is after every value, and the id decides between equal values."""
    members = resource.sort_keys[sort.removeprefix("-")].members

    def rank(name: str, value: Any) -> tuple[bool, Any]:
        type_ = resource.by_name[name].type
        if isinstance(type_, EnumType) and value is not None:
            value = type_.values.index(value)
        return value is None, 0 if value is None else value

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return *(rank(name, row[name]) for name in members), row["id"]

    return sorted(rows, key=key, reverse=sort.startswith("-"))


@pytest.mark.parametrize(("resource", "sort"), EACH_SORT)
def test_pages_continue_every_sort_order(items, resource, sort):
    rows = items.fill()

    needed = resource.sort_needs.get(sort.removeprefix("-"), ())
    filters = {name: value for name, value in OF_ALL_ROWS.items() if name in needed}
    listed = items.list(sort=sort, limit=1, **filters)

    assert_same_lines(
        [row for page in listed for row in page],
        sort_rows(resource, rows, sort),
        "See sort_key of the field's type in todo_api/resources/, or more_sort_keys.",
    )


def filtered_field(resource: Resource, name: str) -> tuple[Field, str]:
    """Return the field that a filter compares, and the end of the filter's name."""
    for field in resource.by_name.values():
        if field.is_filterable and name in field.type.filters(
            resource.table.c[field.name], field.example
        ):
            # Filters of a time leave out the ending: created_after, due_after.
            stem = (
                field.name if name.startswith(field.name) else re.sub("_(at|date)$", "", field.name)
            )
            return field, name.removeprefix(stem)
    return pytest.fail(f"{name}: add its field to filtered_field in tests/test_resources.py")


def filter_cases(
    resource: Resource, name: str, rows: list[dict[str, Any]]
) -> tuple[set[Any], Callable[[dict[str, Any], Any], bool]]:
    """Return values of the filter, and a function that returns whether a row passes."""
    if name == SEARCH:
        values = {
            row[field][1:4].upper() for field in resource.search for row in rows if row[field]
        }
        return values, lambda row, value: any(
            value.lower() in (row[field] or "").lower() for field in resource.search
        )
    if name in resource.more_filters:
        case = MORE_FILTERS.get((resource.name, name))
        return case or pytest.fail(f"{name}: add it to MORE_FILTERS in tests/test_resources.py")
    field, ending = filtered_field(resource, name)
    if isinstance(field.type, LabelsType):
        labels = [row[field.name] for row in rows]
        values = {",".join(each) for each in labels} | {label for each in labels for label in each}
        matches = LABEL_FILTERS[name]
        return values, lambda row, value: bool(matches(set(row[field.name]), value.split(",")))
    assert ending in COMPARISON_BY_ENDING, (
        f"{name}: add its comparison to COMPARISON_BY_ENDING in this file."
    )
    compare = COMPARISON_BY_ENDING[ending]
    return {row[field.name] for row in rows} - {
        None
    }, lambda row, value: row[field.name] is not None and compare(row[field.name], value)


@pytest.mark.parametrize(("resource", "name"), EACH_FILTER)
def test_every_filter_returns_and_counts_the_matching_rows(items, resource, name):
    rows = items.fill()
    values, passes = filter_cases(resource, name, rows)

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
def test_creation_with_an_id_is_compared_by_every_field(items, resource, field):
    values = [value for value in sample_values(field) if value != field.example]
    item = items.create(**with_companions(resource, field, field.example))
    body = items.required() | {"id": item["id"]}

    repeated, *conflicts = (
        items.client.post(items.url, json=body | with_companions(resource, field, value))
        for value in (field.example, *values)
    )

    assert (repeated.status_code, repeated.json) == (201, item)
    assert values
    assert {response.status_code for response in conflicts} == {409}
