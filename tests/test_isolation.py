"""No user sees or touches another's: generated attacks on every operation of the document.

The attacker has a good token of its own, and knows every id of the victim's. The attacks run with
both walls up, and with either one alone: statements that name the owner, row-level security.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from contextlib import contextmanager
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
from tests.support.postgresql import execute, migrate
from todo_api.app import create_app
from todo_api.db.pool import Pool
from todo_api.db.statement import ID, Statement, compiled
from todo_api.resources.items import Item
from todo_api.resources.responses import item_response
from todo_api.services import database
from todo_api.tasks.fields import TASK
from todo_api.web.blueprints import Blueprint

pytestmark = pytest.mark.pooled

SECRET = "a-secret-of-the-tests-that-is-long-enough"
MARK = "Nobody else may read this"
ATTACKS = 20_000
ENOUGH = 1_000  # for each operation to succeed at least once


class OwnerForgotten(Pool):
    """Runs each statement without its owner condition: row-level security has to do alone."""

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            transact = connection.transact
            connection.transact = lambda statements, values, deadline: transact(
                [forgotten(statement) for statement in statements], values, deadline
            )
            yield connection
            del connection.transact


def forgotten(statement):
    sql = statement.sql
    without = re.sub(rb"\w+\.(user_id|id) = %\(owner\)s::UUID", b"true", sql)
    assert without != sql or b"alembic_version" in sql or b"set_config" in sql
    return Statement(without)


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
    """Requests of an attacker, made from the document, and what the victim has to lose."""

    def __init__(self, app: Flask, url: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.url = url
        self.attacker, self.victim = User(app.test_client()), User(app.test_client())
        self.operations = operations(app)
        self.succeeded: set[tuple[str, str]] = set()
        self.mine: list[str] = []
        self.trash: list[str] = []
        tasks_url = f"/api/{self.victim.id}/tasks"
        made = [
            self.victim.send(
                "POST", tasks_url, json={"title": f"{MARK} {number}", "description": MARK}
            )
            for number in range(8)
        ]
        assert {answer.status_code for answer in made} == {201}
        self.theirs = [answer.json["id"] for answer in made]
        assert self.victim.send("DELETE", f"{tasks_url}/{self.theirs.pop()}").status_code == 204
        page = self.victim.send("GET", f"{tasks_url}?limit=1")
        self.cursor = re.search("cursor=([^&>]*)", page.headers["Link"])[1]
        self.revision = page.json[0]["revision"]
        changes = self.victim.send("GET", f"/api/{self.victim.id}/changes?since=0&limit=1")
        self.since = changes.json["next"]
        self.before = self.rows()

    def rows(self) -> list[Any]:
        """All that the database holds of the victim."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(
                """
                SELECT to_jsonb(users) FROM users WHERE id = %(id)s
                UNION ALL SELECT to_jsonb(tasks) FROM tasks WHERE user_id = %(id)s
                """,
                {"id": self.victim.id},
            ).fetchall()

    def run(self, count: int) -> None:
        for number in range(count):
            self.request()
            if number % 100 == 0:
                assert self.rows() == self.before
        assert self.rows() == self.before
        # The attacks are real requests: each operation works for the attacker's own.
        assert self.succeeded == set(self.operations)

    def request(self) -> None:
        method, template = self.random.choice(self.operations)
        self.restoring = template.endswith("/restore")
        path = re.sub(r"{(\w+)}", lambda name: self.id_for(name[1]), template)
        options: dict[str, Any] = {"query_string": self.query(), "headers": self.header()}
        if template.endswith("/changes"):
            options["query_string"] |= {"since": self.random.choice(["0", "1", self.since])}
        if method in ("POST", "PUT", "PATCH") and self.random.random() < 0.9:
            options["json"] = self.body()
        answer = self.attacker.send(method, path, **options)
        sent = json.dumps([path, options])
        self.check(f"{method} {path} {options}", answer, sent)
        if answer.status_code < 300:
            self.succeeded.add((method, template))
            if template.endswith("}/tasks/{task_id}") and method == "DELETE":
                self.trash.append(path.rpartition("/")[2])
            elif method == "DELETE":
                self.mine, self.trash = [], []
            if answer.status_code == 201:
                self.mine.append(answer.json["id"])

    def check(self, request: str, answer: Any, sent: str) -> None:
        said = answer.text + str(answer.headers)
        assert answer.status_code < 500, request
        assert MARK not in said, request
        for secret in (self.victim.id, *self.theirs):
            assert secret not in said or secret in sent, request
        if answer.status_code < 300:
            assert f"/api/{self.victim.id}" not in request.split()[1], request

    def id_for(self, name: str) -> str:
        if name == "user_id":
            return self.random.choice([self.attacker.id] * 4 + [self.victim.id])
        mine = self.trash if self.restoring else self.mine
        ids = [self.random.choice(self.theirs), *mine[-3:] * 2]
        return self.random.choice(ids)

    def query(self) -> dict[str, str]:
        if self.random.random() < 0.9:
            return {}
        return self.random.choice(
            [
                {"cursor": self.cursor},
                {"cursor": self.cursor, "limit": "200"},
                {"completed": "false"},
                {"user_id": self.victim.id},
                {"owner": self.victim.id},
                {"id": self.random.choice(self.theirs)},
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
            body["title"] = "Mine now"
        if self.random.random() < 0.3:
            body["description"] = self.random.choice([None, "Mine"])
        if self.random.random() < 0.3:
            body["completed"] = self.random.random() < 0.5
        if self.random.random() < 0.1:
            name = self.random.choice(["user_id", "owner", "id", "task_id"])
            body[name] = self.random.choice([self.victim.id, *self.theirs])
        return body


def operations(app: Flask) -> list[tuple[str, str]]:
    """Every operation of the document that wants a token."""
    document = app.test_client().get("/openapi.json").json
    return [
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters" and "security" in operation
    ]


@pytest.fixture
def make_app(make_settings, database_url, logged_to):  # noqa: ARG001  logging comes first
    made = []

    def make(url: str = database_url, walls: type[Pool] = Pool) -> Flask:
        settings = make_settings(DATABASE_URL=url, AUTH_MODE="jwt", JWT_SECRET=SECRET)
        app = create_app(settings)
        app.services = replace(app.services, pool=walls(settings, app.services.metrics))
        made.append(app)
        return app

    yield make
    for app in made:
        app.services.pool.close()


@pytest.fixture(scope="session")
def unwalled_url(new_database) -> str:
    """A database without row-level security: the statements have to do alone."""
    url = new_database("unwalled")
    migrate(url)
    for table in ("users", "tasks", "idempotency_keys"):
        execute(url, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    return url


def test_with_both_walls_nothing_leaks(make_app, database_url, count):
    Attack(make_app(), database_url, seed=1).run(count(ATTACKS, ENOUGH))


def test_with_row_level_security_alone_nothing_leaks(make_app, database_url, count):
    Attack(make_app(walls=OwnerForgotten), database_url, seed=2).run(count(ATTACKS, ENOUGH))


def test_with_the_statements_alone_nothing_leaks(make_app, unwalled_url, count):
    Attack(make_app(unwalled_url), unwalled_url, seed=3).run(count(ATTACKS, ENOUGH))


FORGETFUL = compiled(
    select(TASK.statements.json, TASK.table.c.revision, TASK.table.c.id, false()).where(
        TASK.table.c.id == ID
    )
)


def test_a_new_route_that_forgets_its_owner_is_found(make_app, unwalled_url):
    blueprint = Blueprint("forgetful", __name__, url_prefix="/api/<id:user_id>/forgetful")

    @blueprint.get("/<id:task_id>")
    @blueprint.response(200)
    def read(user_id: uuid.UUID, task_id: uuid.UUID) -> Response:
        """Forget whose task it is."""
        row = database().one(user_id, FORGETFUL, id=task_id)
        return item_response(Item(*row) if row else None)

    app = make_app(unwalled_url)
    app.extensions["flask-smorest"]["apis"][""]["ext_obj"].register_blueprint(blueprint)
    attack = Attack(app, unwalled_url, seed=4)
    attack.operations = [("GET", "/api/{user_id}/forgetful/{task_id}")]

    with pytest.raises(AssertionError, match="forgetful"):
        attack.run(1000)
