"""What holds for every field, filter and order of every resource, and for those to come.

Each runs over the resources of the application and over one of the tests, whose fields are of every
type. A new field or resource is tested here without a line.
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
from tests.support.things import THING, create_things, serve_things
from todo_api.app import RESOURCES

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from psycopg import Connection

    from todo_api.resources.fields import Field
    from todo_api.resources.resource import Resource

ALL = (*RESOURCES, THING)
EACH_RESOURCE = [pytest.param(each, id=each.name) for each in ALL]
EACH_FIELD = [
    pytest.param(each, field, id=f"{each.name}-{field.name}")
    for each in ALL
    for field in each.fields
]
EACH_RULE = [
    pytest.param(each, field, ending, id=f"{each.name}-{field.name}-{ending}")
    for each in ALL
    for field in each.fields
    for ending in field.type.rules(field.name)
]
EACH_SORT = [
    pytest.param(each, prefix + name, id=f"{each.name}-{prefix}{name}")
    for each in ALL
    for name in each.sort_keys
    for prefix in ("", "-")
]
EACH_FILTER = [
    pytest.param(each, name, id=f"{each.name}-{name}") for each in ALL for name in each.filters
]

# What the end of a filter's name, behind that of its field, means.
COMPARISONS = {
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
    """A user's items of a resource, over HTTP."""

    client: FlaskClient
    connection: Connection
    resource: Resource
    url: str

    def required(self) -> dict[str, Any]:
        return {field.name: field.example for field in self.resource.fields if field.required}

    def create(self, **values: Any) -> dict[str, Any]:
        response = self.client.post(self.url, json=self.required() | values)
        assert response.status_code == 201, response.text
        return response.json

    def fill(self) -> list[dict[str, Any]]:
        """Create items with different values, null among them, and change one of them last."""
        samples = {field.name: sample_values(field) for field in self.resource.fields}
        first, *others = [
            self.create(**{name: values[row % len(values)] for name, values in samples.items()})
            for row in range(ROWS)
        ]
        url = f"{self.url}/{first['id']}"
        assert self.client.delete(url).status_code == 204
        return [self.client.post(f"{url}/restore").json, *others]

    def list(self, **query: Any) -> list[list[dict[str, Any]]]:
        """The list's pages: one for each item at most, and another that should not be there."""
        texts = {name: query_text(value) for name, value in query.items()}
        return list(islice(pages(self.client, f"{self.url}?{urlencode(texts)}"), ROWS + 1))


def query_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


@pytest.fixture(scope="module")
def things_url(new_database) -> str:
    url = new_database("things")
    migrate(url)
    create_things(url)
    return url


@pytest.fixture
def items(request, resource, user_id):
    """The items of the resource that the test is about."""
    if resource is not THING:
        client, connection = (request.getfixturevalue(name) for name in ("client", "connection"))
        yield Items(client, connection, resource, f"/api/{user_id}/{resource.plural}")
        return
    url = request.getfixturevalue("things_url")
    app = request.getfixturevalue("make_app")(DATABASE_URL=url)
    serve_things(app)
    with psycopg.connect(url, autocommit=True) as connection:
        yield Items(app.test_client(), connection, resource, f"/api/{user_id}/things")


@pytest.mark.parametrize("resource", EACH_RESOURCE)
def test_resource_has_every_route(items, resource):
    endpoints = {
        endpoint.rpartition(".")[2] for endpoint in items.client.application.view_functions
    }

    assert {
        f"create_{resource.name}",
        f"list_{resource.plural}_of_user",
        f"get_{resource.name}",
        f"replace_{resource.name}",
        f"patch_{resource.name}",
        f"remove_{resource.name}",
        f"restore_{resource.name}",
        f"list_{resource.name}_changes",
    } <= endpoints, "Register a blueprint with the routes of todo_api/resources/views.py in app.py."


@pytest.mark.parametrize("resource", EACH_RESOURCE)
def test_every_field_is_in_every_schema_and_in_the_representation(items, resource):
    fields = [field.name for field in resource.fields]
    members = ["id", "user_id", *fields, "created_at", "updated_at", "revision"]
    made = items.create()
    listed = items.list(limit=1)[0][0]
    items.client.delete(f"{items.url}/{made['id']}")
    in_trash = items.list(deleted=True)[0][0]

    for request_schema in ("creation", "replacement", "patch"):
        assert_same_lines(
            getattr(resource.schemas, request_schema)().fields,
            fields,
            f"{resource.name}.{request_schema}: see todo_api/resources/schemas.py.",
        )
    for shown in (made, listed):
        assert_same_lines(shown, members, "See members in todo_api/resources/statements.py.")
    assert_same_lines(
        in_trash,
        [*members, "deleted_at", "purge_at"],
        "See list_statement in todo_api/resources/pages.py.",
    )
    for schema, shown in (("item", made), ("deleted_item", in_trash)):
        assert_same_lines(
            sorted(getattr(resource.schemas, schema)().fields),
            sorted(shown),
            f"{resource.name}.{schema}: see todo_api/resources/schemas.py.",
        )


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_every_value_of_a_field_is_kept_by_post_patch_and_put(items, field):
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
def test_a_field_that_is_not_sent_has_its_default_or_is_missed(items, field):
    other = next(value for value in sample_values(field) if value != field.default)
    item = items.create(**{field.name: other})
    body = {name: value for name, value in items.required().items() if name != field.name}

    created = items.client.post(items.url, json=body)
    replaced = items.client.put(f"{items.url}/{item['id']}", json=body)
    patched = items.client.patch(f"{items.url}/{item['id']}", json={})

    missed = [{"pointer": f"/{field.name}", "detail": "Missing data for required field."}]
    if field.required:
        assert (created.status_code, created.json["errors"]) == (422, missed)
        assert (replaced.status_code, replaced.json["errors"]) == (422, missed)
    else:
        assert created.json[field.name] == field.default
        assert replaced.json[field.name] == (field.default if field.is_reset_by_put else other)
        assert patched.json == replaced.json


@pytest.mark.parametrize(("resource", "field"), EACH_FIELD)
def test_null_is_refused_unless_the_field_may_be_null(items, field):
    response = items.client.post(items.url, json=items.required() | {field.name: None})

    if field.nullable:
        assert (response.status_code, response.json[field.name]) == (201, None)
    else:
        errors = [{"pointer": f"/{field.name}", "detail": "Field may not be null."}]
        assert (response.status_code, response.json["errors"]) == (422, errors)


def test_every_rule_of_a_field_has_a_value_that_breaks_it():
    fields = [field for resource in ALL for field in resource.fields]

    assert_same_lines(
        [f"{field.name} {ending}" for field in fields for ending in breaking_values(field)],
        [f"{field.name} {ending}" for field in fields for ending in field.type.rules(field.name)],
        "Add a value that breaks the rule to breaking_values in tests/support/samples.py.",
    )


@pytest.mark.parametrize(("resource", "field", "ending"), EACH_RULE)
def test_a_value_that_breaks_a_rule_reaches_no_row(items, resource, field, ending):
    """The schema refuses it or, as with white space, corrects it; the database refuses it."""
    value, rule = breaking_values(field)[ending], field.type.rules(field.name)[ending]
    item = items.create()

    sent = items.client.patch(f"{items.url}/{item['id']}", json={field.name: value})
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        items.connection.execute(
            f"UPDATE {resource.plural} SET {field.name} = %s WHERE id = %s", (value, item["id"])
        )

    pointer = f"/{field.name}"
    if sent.status_code == 422:
        assert sent.json["errors"] == [{"pointer": pointer, "detail": rule.detail}]
    else:
        assert sent.json[field.name] != value
    constraint = refused.value.diag.constraint_name
    assert constraint == f"ck_{resource.plural}_{field.name}_{ending}"
    assert resource.constraints[constraint] == (pointer, rule.detail)


def in_order(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Sort as lists do: null is after every value, and the id decides between equal values."""
    name = sort.removeprefix("-")

    def key(row: dict[str, Any]) -> tuple[bool, Any, str]:
        return row[name] is None, 0 if row[name] is None else row[name], row["id"]

    return sorted(rows, key=key, reverse=sort.startswith("-"))


@pytest.mark.parametrize(("resource", "sort"), EACH_SORT)
def test_every_order_goes_on_from_page_to_page(items, resource, sort):
    rows = items.fill()

    listed = items.list(sort=sort, limit=1)

    field = resource.by_name[sort.removeprefix("-")]
    assert_same_lines(
        [row for page in listed for row in page],
        in_order(rows, sort),
        f"See sort_key of {type(field.type).__name__} in todo_api/resources/types.py.",
    )


def filtered_field(resource: Resource, name: str) -> tuple[Field, str]:
    """The field that a filter is about, and the end of the filter's name."""
    for field in resource.by_name.values():
        if field.is_filterable and name in field.type.filters(
            resource.table.c[field.name], field.example
        ):
            # A moment's filters are named without its _at.
            stem = field.name if name.startswith(field.name) else field.name.removesuffix("_at")
            return field, name.removeprefix(stem)
    return pytest.fail(f"{name}: of which field is it? Say so in tests/test_resources.py")


@pytest.mark.parametrize(("resource", "name"), EACH_FILTER)
def test_every_filter_lets_through_what_it_says(items, resource, name):
    rows = items.fill()
    if name == SEARCH:
        values = {
            row[field][1:4].upper() for field in resource.search for row in rows if row[field]
        }

        def passes(row: dict[str, Any], value: Any) -> bool:
            return any(value.lower() in (row[field] or "").lower() for field in resource.search)
    else:
        field, ending = filtered_field(resource, name)
        assert ending in COMPARISONS, f"{name}: add what it means to COMPARISONS in this file."
        values = {row[field.name] for row in rows} - {None}

        def passes(row: dict[str, Any], value: Any) -> bool:
            return row[field.name] is not None and COMPARISONS[ending](row[field.name], value)

    narrowed = False
    for value in sorted(filter(lambda value: value != "", values)):
        (page,) = items.list(**{name: value}, sort="created_at") or [[]]
        expected = [row for row in in_order(rows, "created_at") if passes(row, value)]
        assert_same_lines(
            page,
            expected,
            f"?{name}={value}: see filters in todo_api/resources/types.py or resource.py.",
        )
        narrowed = narrowed or 0 < len(expected) < ROWS
    assert narrowed, "The values do not show that the filter keeps some and leaves out others."
