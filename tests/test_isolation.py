"""No user reads or changes another user's data: random attacks on every documented operation.

The attacker has a valid token, and knows every id of the victim. Two protections stop the attacks:
the owner condition of every statement, and row-level security. The attacks run with both of them
and with each one alone.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from joserfc import jwt
from joserfc.jwk import OctKey
from sqlalchemy import false, select

from tests.support.api import etag
from tests.support.isolation import PoolWithoutOwnerConditions
from tests.support.postgresql import execute, migrate
from todo_api.app import create_app
from todo_api.db.pool import Pool
from todo_api.db.statement import ID, compiled
from todo_api.resources.items import Item
from todo_api.resources.responses import item_response
from todo_api.services import database
from todo_api.tasks.fields import TASK
from todo_api.web.blueprints import Blueprint

pytestmark = pytest.mark.pooled

SECRET = "a-secret-of-the-tests-that-is-long-enough"
SECRET_TEXT = "Nobody else may read this"
LABEL = "errand"  # of both users
ATTACKS = 20_000
ERASURES = {("DELETE", "/api/{user_id}"), ("DELETE", "/api/{user_id}/trash")}
MINIMUM_ATTACKS = 2_000  # each operation succeeds at least once with the attacker's own data


@dataclass
class User:
    client: FlaskClient
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self):
        claims = {"sub": self.id, "exp": 2**33}
        token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
        self.headers = {"Authorization": f"Bearer {token}"}

    def send(self, method: str, path: str, **options: Any):
        headers = options.pop("headers", {}) | self.headers
        return self.client.open(path, method=method, headers=headers, **options)


class Attack:
    """Random requests of an attacker on documented operations, and checks of a victim's data."""

    def __init__(self, app: Flask, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.url = url
        self.attacker, self.victim = User(app.test_client()), User(app.test_client())
        self.operations = operations(app)
        self.examples = example_bodies(app)
        self.succeeded: set[tuple[str, str]] = set()
        # The ids of live items and of those in the trash, by type.
        self.attacker_items: dict[str, list[str]] = {"task": [], "list": []}
        self.attacker_trash: dict[str, list[str]] = {"task": [], "list": []}
        tasks_url, lists_url = (f"/api/{self.victim.id}/{items}" for items in ("tasks", "lists"))
        lists = [
            self.victim.send("POST", lists_url, json={"name": f"{SECRET_TEXT} {number}"}).json["id"]
            for number in range(3)
        ]
        assert self.victim.send("DELETE", f"{lists_url}/{lists[2]}").status_code == 200
        responses = [
            self.victim.send(
                "POST",
                tasks_url,
                json={
                    "title": f"{SECRET_TEXT} {number}",
                    "description": SECRET_TEXT,
                    "labels": [LABEL, SECRET_TEXT],
                    "metadata": {SECRET_TEXT: SECRET_TEXT},
                    "list_id": lists[number % 2],
                },
            )
            for number in range(8)
        ]
        assert {response.status_code for response in responses} == {201}
        self.victim_items = {"task": [task.json["id"] for task in responses], "list": lists}
        self.victim_ids = [*self.victim_items["task"], *lists]
        deleted = self.victim_items["task"][-2:]
        for task in deleted:
            assert self.victim.send("DELETE", f"{tasks_url}/{task}").status_code == 204
        # The attacker may make a task with this id, so responses may contain it.
        self.reused_id = self.victim_items["task"][0]
        self.secrets = {self.victim.id, *self.victim_ids} - {self.reused_id}
        page = self.victim.send("GET", f"{tasks_url}?limit=1")
        trash = self.victim.send("GET", f"/api/{self.victim.id}/trash?limit=1")
        self.cursors = [
            re.search("cursor=([^&>]*)", response.headers["Link"])[1] for response in (page, trash)
        ]
        self.revision = page.json[0]["revision"]
        changes = [
            self.victim.send("GET", f"/api/{self.victim.id}/changes?since=0&limit={limit}")
            for limit in (1, 200)
        ]
        self.tokens = [response.json["next"] for response in changes]
        self.rows_before = self.rows()
        self.view_before = self.view()
        assert [len(items) for items in self.view_before] == [6, 2, 8, 3, 2, 5]

    def view(self) -> list[Any]:
        """Return what the victim reads: tasks, lists, changes, trash, labels and the user."""
        url = f"/api/{self.victim.id}"
        tasks, lists, changes, trash, labels, user = (
            self.victim.send("GET", url + path).json
            for path in ("/tasks", "/lists", "/changes?since=0", "/trash", "/labels", "")
        )
        return [tasks, lists, changes["changes"], trash, labels, user]

    def rows(self) -> list[Any]:
        """Return all rows of the victim, in the same order whatever the plan is."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(
                """
                SELECT to_jsonb(users) FROM users WHERE id = %(id)s
                UNION ALL SELECT to_jsonb(lists) FROM lists WHERE user_id = %(id)s
                UNION ALL SELECT to_jsonb(tasks) FROM tasks WHERE user_id = %(id)s
                ORDER BY 1
                """,
                {"id": self.victim.id},
            ).fetchall()

    def run(self, count: int) -> None:
        for number in range(count):
            self.request()
            if number % 100 == 0:
                assert self.rows() == self.rows_before
        assert self.rows() == self.rows_before
        assert self.view() == self.view_before
        # The requests are valid: each operation succeeds with the attacker's own data.
        assert self.succeeded == set(self.operations)

    def request(self) -> None:
        # Erasures are rare, so that the other operations find rows of the attacker.
        weights = [1 if operation in ERASURES else 3 for operation in self.operations]
        ((method, template),) = self.random.choices(self.operations, weights)
        self.is_restore = template.endswith("/restore")
        path = re.sub(r"{(\w+)}", lambda name: self.id_for(name[1]), template)
        options: dict[str, Any] = {"query_string": self.query(), "headers": self.header()}
        if template.endswith("/changes"):
            options["query_string"] |= {"since": self.random.choice(["0", "1", *self.tokens])}
        if method in ("POST", "PUT", "PATCH") and self.random.random() < 0.9:
            example = self.examples.get((method, template))
            options["json"] = (
                example if example is not None and self.random.random() < 0.3 else self.body()
            )
        response = self.attacker.send(method, path, **options)
        request_text = json.dumps([path, options])
        self.check(f"{method} {path} {options}", response, request_text)
        if response.status_code < 300:
            self.succeeded.add((method, template))
            item_type = "list" if "/lists" in template else "task"
            if template.endswith("_id}") and "/{user_id}/" in template and method == "DELETE":
                self.attacker_trash[item_type].append(path.rpartition("/")[2])
            elif template.endswith("/trash") and method == "DELETE":
                self.attacker_trash = {"task": [], "list": []}
            elif template.endswith("/{user_id}") and method == "DELETE":
                self.attacker_items = {"task": [], "list": []}
                self.attacker_trash = {"task": [], "list": []}
            if response.status_code == 201:
                self.attacker_items[item_type].append(response.json["id"])

    def check(self, request: str, response: Any, request_text: str) -> None:
        response_text = response.text + str(response.headers)
        assert response.status_code < 500, request
        assert SECRET_TEXT not in response_text, request
        for secret in self.secrets:
            assert secret not in response_text or secret in request_text, request
        if response.status_code < 300:
            assert f"/api/{self.victim.id}" not in request.split()[1], request

    def id_for(self, name: str) -> str:
        if name == "label":
            return LABEL
        if name == "user_id":
            return self.random.choice([self.attacker.id] * 4 + [self.victim.id])
        item_type = name.removesuffix("_id")
        attacker_ids = (self.attacker_trash if self.is_restore else self.attacker_items)[item_type]
        ids = [self.random.choice(self.victim_items[item_type]), *attacker_ids[-3:] * 2]
        return self.random.choice(ids)

    def query(self) -> dict[str, str]:
        if self.random.random() < 0.9:
            return {}
        return self.random.choice(
            [
                {"cursor": self.random.choice(self.cursors)},
                {"cursor": self.random.choice(self.cursors), "limit": "200"},
                {"completed": "false"},
                {"label": LABEL},
                {"label_any": f"{LABEL},{SECRET_TEXT}"},
                {"due": "none"},
                {"user_id": self.victim.id},
                {"owner": self.victim.id},
                {"id": self.random.choice(self.victim_ids)},
                {"list_id": self.random.choice(self.victim_items["list"])},
                {"parent_id": self.random.choice(self.victim_items["task"])},
                {"tasks": "inbox"},
            ]
        )

    def header(self) -> dict[str, str]:
        if self.random.random() < 0.7:
            return {}
        return self.random.choice(
            [
                {"X-User-Id": self.victim.id},
                {"X-Forwarded-User": self.victim.id},
                {"X-Original-URL": f"/api/{self.victim.id}/tasks"},
                {"X-HTTP-Method-Override": "DELETE"},
                {"Cookie": f"user_id={self.victim.id}"},
                {"If-Match": etag(self.revision)},
                {"If-None-Match": etag(self.revision)},
                {"Idempotency-Key": self.victim.id},
            ]
        )

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {}
        if self.random.random() < 0.7:
            body[self.random.choice(["title", "title", "name"])] = "Mine now"
        if self.random.random() < 0.3:
            body["description"] = self.random.choice([None, "Mine"])
        if self.random.random() < 0.3:
            body["completed"] = self.random.random() < 0.5
        if self.random.random() < 0.2:
            body["labels"] = self.random.choice([[], [LABEL]])
        if self.random.random() < 0.2:
            names = ["user_id", "owner", "id", "task_id", "list_id", "parent_id", "after", "before"]
            name = self.random.choice(names)
            body[name] = self.random.choice([self.victim.id, *self.victim_ids])
            if name == "id":
                body[name] = self.reused_id
        if self.random.random() < 0.1:
            body["revision"] = self.revision
        return body


def operations(app: Flask) -> list[tuple[str, str]]:
    """Return the method and path of each documented operation that needs a token."""
    document = app.test_client().get("/openapi.json").json
    return [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters" and "security" in operation
    ]


# Members whose values belong to one item.
IDS_AND_REVISION = ("id", "user_id", "list_id", "parent_id", "after", "before", "revision")


def example_bodies(app: Flask) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the documented body of each operation, without members that one resource has."""
    document = app.test_client().get("/openapi.json").json
    return {
        (method.upper(), path): {
            name: value
            for name, value in next(iter(operation["requestBody"]["content"].values()))[
                "example"
            ].items()
            if name not in IDS_AND_REVISION
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }


@pytest.fixture
def make_app(make_settings, database_url, log_stream):  # noqa: ARG001  configures logging
    apps = []

    def make(url: str = database_url, pool_class: type[Pool] = Pool) -> Flask:
        settings = make_settings(DATABASE_URL=url, AUTH_MODE="jwt", JWT_SECRET=SECRET)
        app = create_app(settings)
        app.services = replace(app.services, pool=pool_class(settings, app.services.metrics))
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.services.pool.close()


@pytest.fixture(scope="session")
def url_without_row_level_security(new_database) -> str:
    """The URL of a database without row-level security."""
    url = new_database("without_security")
    migrate(url)
    for table in ("users", "lists", "tasks", "idempotency_keys"):
        execute(url, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    return url


def test_owner_conditions_and_row_level_security_stop_every_attack(make_app, database_url, count):
    Attack(make_app(), database_url, seed=1).run(count(ATTACKS, MINIMUM_ATTACKS))


@pytest.mark.parametrize("path", ["tasks", "trash", "changes"])
def test_position_of_another_user_is_refused(make_app, database_url, path):
    attack = Attack(make_app(), database_url, seed=5)
    name, positions = ("since", attack.tokens) if path == "changes" else ("cursor", attack.cursors)

    for position in positions:
        response = attack.attacker.send(
            "GET", f"/api/{attack.attacker.id}/{path}", query_string={name: position}
        )

        assert response.status_code == 422
        assert [error["parameter"] for error in response.json["errors"]] == [name]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "trash"), ("DELETE", "trash"), ("GET", "changes?since=0"), ("GET", "tasks")],
)
def test_path_of_another_user_is_not_found(make_app, database_url, method, path):
    attack = Attack(make_app(), database_url, seed=6)

    response = attack.attacker.send(method, f"/api/{attack.victim.id}/{path}")
    of_nobody = attack.attacker.send(method, f"/api/{uuid.uuid4()}/{path}")

    assert response.status_code == of_nobody.status_code == 404
    assert response.json | {"instance": None} == of_nobody.json | {"instance": None}
    assert (attack.rows(), attack.view()) == (attack.rows_before, attack.view_before)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("name", ["user_id", "id"])
def test_ids_of_another_user_in_a_body_change_nothing_of_theirs(
    make_app, database_url, method, name
):
    attack = Attack(make_app(), database_url, seed=7)
    attacker, tasks_url = attack.attacker, f"/api/{attack.attacker.id}/tasks"
    own = attacker.send("POST", tasks_url, json={"title": "Own"}).json
    value = attack.victim.id if name == "user_id" else attack.reused_id

    response = attacker.send(
        method,
        tasks_url if method == "POST" else f"{tasks_url}/{own['id']}",
        json={"title": "Mine now", name: value},
    )

    if (method, name) == ("POST", "id"):
        # Ids are of their owner: the attacker has a task of the same id now.
        assert response.status_code == 201
        assert response.json["user_id"] == attacker.id
        assert response.json["description"] is None
    else:
        assert response.status_code == 422
        assert [error["pointer"] for error in response.json["errors"]] == [f"/{name}"]
        assert attacker.send("GET", tasks_url).json == [own]
    assert (attack.rows(), attack.view()) == (attack.rows_before, attack.view_before)


def test_attacks_include_changes_and_trash(make_app, database_url):
    attack = Attack(make_app(), database_url, seed=8)

    assert {
        ("GET", "/api/{user_id}/changes"),
        ("GET", "/api/{user_id}/trash"),
        ("DELETE", "/api/{user_id}/trash"),
        ("POST", "/api/{user_id}/tasks/{task_id}/restore"),
    } <= set(attack.operations)


def test_row_level_security_alone_stops_every_attack(make_app, database_url, count):
    Attack(make_app(pool_class=PoolWithoutOwnerConditions), database_url, seed=2).run(
        count(ATTACKS, MINIMUM_ATTACKS)
    )


def test_owner_conditions_alone_stop_every_attack(make_app, url_without_row_level_security, count):
    Attack(make_app(url_without_row_level_security), url_without_row_level_security, seed=3).run(
        count(ATTACKS, MINIMUM_ATTACKS)
    )


FIND_WITHOUT_OWNER = compiled(
    select(TASK.statements.json, TASK.table.c.revision, TASK.table.c.id, false()).where(
        TASK.table.c.id == ID
    )
)


def test_attacks_detect_a_route_without_an_owner_condition(
    make_app, url_without_row_level_security
):
    blueprint = Blueprint("unprotected", __name__, url_prefix="/api/<id:user_id>/unprotected")

    @blueprint.get("/<id:task_id>")
    @blueprint.response(200)
    def read(user_id: uuid.UUID, task_id: uuid.UUID) -> Response:
        """Read a task of any owner."""
        row = database().one(user_id, FIND_WITHOUT_OWNER, id=task_id)
        return item_response(Item(*row) if row else None)

    app = make_app(url_without_row_level_security)
    app.extensions["flask-smorest"]["apis"][""]["ext_obj"].register_blueprint(blueprint)
    attack = Attack(app, url_without_row_level_security, seed=4)
    attack.operations = [("GET", "/api/{user_id}/unprotected/{task_id}")]

    with pytest.raises(AssertionError, match="unprotected"):
        attack.run(1000)
