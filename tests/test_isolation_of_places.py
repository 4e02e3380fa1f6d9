"""No user reaches another user's lists, trees and order: attacks with ids of the other user.

Each attack is a valid request with one id in it. It first succeeds with an id of the attacker, and
then has to fail, or to find nothing, with the victim's id in the same place. Both protections
together stop the attacks, and each one alone: the owner conditions of the statements, and row-level
security.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.support.isolation import PoolWithoutOwnerConditions
from tests.support.postgresql import execute, migrate
from todo_api.app import create_app
from todo_api.db.pool import Pool

if TYPE_CHECKING:
    from flask import Flask
    from werkzeug.test import TestResponse

pytestmark = pytest.mark.pooled

SECRET = "a-secret-of-the-tests-that-is-long-enough"
SECRET_TEXT = "Nobody else may read this"
ATTACKS = 10_000
SEED = 15


class Attack(NamedTuple):
    """A request with the id of a list or task in it, and the response to another user's id.

    `kind` is the kind of the id; {own} in the path is a task or list of the attacker. An attack
    with the status 200 finds nothing: its response is `nothing`.
    """

    kind: str
    method: str
    path: str
    body: dict[str, Any] | None
    status: int
    pointer: str | None = None
    nothing: Any = None


ATTACKS_BY_NAME = {
    "create in a list": Attack(
        "list", "POST", "/tasks", {"title": "Mine", "list_id": "{id}"}, 422, "/list_id"
    ),
    "create below a task": Attack(
        "task", "POST", "/tasks", {"title": "Mine", "parent_id": "{id}"}, 422, "/parent_id"
    ),
    "create in an archived list": Attack(
        "archived list", "POST", "/tasks", {"title": "Mine", "list_id": "{id}"}, 422, "/list_id"
    ),
    "patch into a list": Attack(
        "list", "PATCH", "/tasks/{own}", {"list_id": "{id}"}, 422, "/list_id"
    ),
    "patch below a task": Attack(
        "task", "PATCH", "/tasks/{own}", {"parent_id": "{id}"}, 422, "/parent_id"
    ),
    "put into a list": Attack(
        "list", "PUT", "/tasks/{own}", {"title": "Mine", "list_id": "{id}"}, 422, "/list_id"
    ),
    "move into a list": Attack(
        "list", "POST", "/tasks/{own}/move", {"list_id": "{id}"}, 422, "/list_id"
    ),
    "move below a task": Attack(
        "task", "POST", "/tasks/{own}/move", {"parent_id": "{id}"}, 422, "/parent_id"
    ),
    "move behind a task": Attack(
        "task", "POST", "/tasks/{own}/move", {"after": "{id}"}, 422, "/after"
    ),
    "move in front of a task": Attack(
        "task", "POST", "/tasks/{own}/move", {"before": "{id}"}, 422, "/before"
    ),
    "move behind a list": Attack(
        "list", "POST", "/lists/{own list}/move", {"after": "{id}"}, 422, "/after"
    ),
    "move in front of a list": Attack(
        "list", "POST", "/lists/{own list}/move", {"before": "{id}"}, 422, "/before"
    ),
    "move a task": Attack("task", "POST", "/tasks/{id}/move", {"after": None}, 404),
    "move a list": Attack("list", "POST", "/lists/{id}/move", {"after": None}, 404),
    "complete a tree": Attack("task", "PATCH", "/tasks/{id}/complete", {"subtasks": True}, 404),
    "read a list": Attack("list", "GET", "/lists/{id}", None, 404),
    "patch a list": Attack("list", "PATCH", "/lists/{id}", {"name": "Mine"}, 404),
    "put a list": Attack("list", "PUT", "/lists/{id}", {"name": "Mine"}, 404),
    "delete a tree": Attack("task", "DELETE", "/tasks/{id}", None, 404),
    "delete a list": Attack("list", "DELETE", "/lists/{id}", None, 404),
    "empty a list into the inbox": Attack("list", "DELETE", "/lists/{id}?tasks=inbox", None, 404),
    "restore a list": Attack("deleted list", "POST", "/lists/{id}/restore", None, 404),
    "restore a tree": Attack("deleted task", "POST", "/tasks/{id}/restore", None, 404),
    "list the tasks of a list": Attack("list", "GET", "/tasks?list_id={id}", None, 200, None, []),
    "list the subtasks of a task": Attack(
        "task", "GET", "/tasks?parent_id={id}&sort=position", None, 200, None, []
    ),
    "list an archived list": Attack(
        "archived list", "GET", "/tasks?list_id={id}&archived=true", None, 200, None, []
    ),
    "count the tasks of a list": Attack(
        "list", "GET", "/tasks/count?list_id={id}", None, 200, None, {"count": 0}
    ),
    "count by list": Attack(
        "list",
        "GET",
        "/tasks/count?list_id={id}&by=list_id",
        None,
        200,
        None,
        {"count": 0, "counts": []},
    ),
}


class User:
    """A user with a token, who has lists and trees, some of them in the trash or archived."""

    def __init__(self, app: Flask, text: str) -> None:
        self.client = app.test_client()
        self.id = str(uuid.uuid4())
        self.text = text
        token = jwt.encode(
            {"alg": "HS256"}, {"sub": self.id, "exp": 2**33}, OctKey.import_key(SECRET)
        )
        self.headers = {"Authorization": f"Bearer {token}"}
        self.ids: dict[str, str] = {}
        self.begin()

    def begin(self) -> None:
        """Erase the user, and make a new list and tree of each kind."""
        assert self.send("DELETE", "").status_code == 204
        self.own_list = self.create("lists", name=self.text)
        self.own = self.create("tasks", title=self.text)
        for kind in ("list", "archived list", "deleted list", "task", "deleted task"):
            self.renew(kind)

    def send(self, method: str, path: str, body: Any = None) -> TestResponse:
        return self.client.open(
            f"/api/{self.id}{path}", method=method, json=body, headers=self.headers
        )

    def create(self, collection: str, **values: Any) -> str:
        response = self.send("POST", f"/{collection}", values)
        assert response.status_code == 201, response.text
        return str(response.json["id"])

    def renew(self, kind: str) -> None:
        """Make a new tree or list of this kind, with a task in it."""
        if kind.endswith("list"):
            new_id = self.create("lists", name=self.text)
            self.create("tasks", title=self.text, list_id=new_id)
            path = f"/lists/{new_id}"
        else:
            new_id = self.create("tasks", title=self.text)
            self.create("tasks", title=self.text, parent_id=new_id)
            path = f"/tasks/{new_id}"
        if kind.startswith("deleted"):
            assert self.send("DELETE", path).status_code in (200, 204)
        if kind.startswith("archived"):
            assert self.send("PATCH", path, {"archived": True}).status_code == 200
        self.ids[kind] = new_id

    def attack(self, attack: Attack, used_id: str) -> TestResponse:
        """Send the request with this id in it."""
        path = attack.path.replace("{own list}", self.own_list).replace("{own}", self.own)
        body = attack.body and {
            name: used_id if value == "{id}" else value for name, value in attack.body.items()
        }
        return self.send(attack.method, path.replace("{id}", used_id), body)


@pytest.fixture
def make_users(make_settings, database_url, log_stream):  # noqa: ARG001  configures logging
    """Return a function that makes an attacker and a victim of a new application."""
    pools = []

    def make(url: str = database_url, pool_class: type[Pool] = Pool) -> tuple[User, User]:
        settings = make_settings(DATABASE_URL=url, AUTH_MODE="jwt", JWT_SECRET=SECRET)
        app = create_app(settings)
        app.services.pool.close()
        pools.append(pool_class(settings, app.services.metrics))
        app.services = replace(app.services, pool=pools[-1])
        return User(app, "Mine"), User(app, SECRET_TEXT)

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="session")
def url_without_row_level_security(new_database) -> str:
    """The URL of a database without row-level security."""
    url = new_database("places_without_security")
    migrate(url)
    for table in ("users", "tasks", "lists", "idempotency_keys"):
        execute(url, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    return url


def read_rows(url: str, owner: str) -> list[Any]:
    """Return all rows of the owner, in the same order whatever the plan is."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            """
            SELECT to_jsonb(users) FROM users WHERE id = %(id)s
            UNION ALL SELECT to_jsonb(tasks) FROM tasks WHERE user_id = %(id)s
            UNION ALL SELECT to_jsonb(lists) FROM lists WHERE user_id = %(id)s
            ORDER BY 1
            """,
            {"id": owner},
        ).fetchall()


def run_attacks(attacker: User, victim: User, url: str, count: int) -> None:
    """Send each attack at least once, and `count` in all; the victim's rows stay as they are.

    Each attack first succeeds with an id of the attacker, and later in one of ten cases.
    """
    choose = random.Random(SEED)
    names = list(ATTACKS_BY_NAME)
    chosen = names + choose.choices(names, k=max(0, count - len(names)))
    before = read_rows(url, victim.id)
    assert len(before) == 1 + 8 + 4  # the user, tasks, and lists
    for number, name in enumerate(chosen):
        attack = ATTACKS_BY_NAME[name]
        if number < len(names) or number % 10 == 0:
            check_success_with_own_id(attacker, attack, name)
        check_refusal(attacker.attack(attack, victim.ids[attack.kind]), attack, victim, name)
        if number % 50 == 49:
            attacker.begin()  # before there are 500 lists
        if number % 50 == 0 or number < len(names):
            assert read_rows(url, victim.id) == before, name
    assert read_rows(url, victim.id) == before


def check_success_with_own_id(attacker: User, attack: Attack, name: str) -> None:
    """Check that the request is valid: it succeeds with the attacker's own id."""
    attacker.own = attacker.create("tasks", title="Mine")
    response = attacker.attack(attack, attacker.ids[attack.kind])
    if attack.kind == "archived list" and attack.method == "POST":
        assert (response.status_code, response.json["type"]) == (409, "/problems/archived-list")
        return
    assert response.status_code in (200, 201, 204), (name, response.text)
    if attack.nothing is not None:
        assert response.json != attack.nothing, name
    # Whatever the request has changed, the next attack has a new tree or list.
    if attack.method != "GET":
        attacker.renew(attack.kind)
        attacker.own = attacker.create("tasks", title="Mine")


def check_refusal(response: TestResponse, attack: Attack, victim: User, name: str) -> None:
    """Check that the response to the victim's id is the one to an id that does not exist."""
    assert response.status_code == attack.status, (name, response.text)
    if attack.status == 200:
        assert response.json == attack.nothing, name
    elif attack.pointer:
        assert [error["pointer"] for error in response.json["errors"]] == [attack.pointer], name
    text = response.text + str(response.headers)
    assert SECRET_TEXT not in text, name
    assert victim.id not in text, name
    if not attack.path.startswith("/tasks?"):
        assert not any(each in text for each in victim.ids.values()), name


def test_both_protections_stop_attacks_on_places(make_users, database_url, count):
    attacker, victim = make_users()

    run_attacks(attacker, victim, database_url, count(ATTACKS, 60))


def test_row_level_security_alone_stops_attacks_on_places(make_users, database_url, count):
    attacker, victim = make_users(pool_class=PoolWithoutOwnerConditions)

    run_attacks(attacker, victim, database_url, count(ATTACKS, 60))


def test_owner_conditions_alone_stop_attacks_on_places(
    make_users, url_without_row_level_security, count
):
    attacker, victim = make_users(url_without_row_level_security)

    run_attacks(attacker, victim, url_without_row_level_security, count(ATTACKS, 60))


@pytest.mark.parametrize("name", ATTACKS_BY_NAME)
def test_response_to_the_id_of_another_user_is_the_one_to_an_unknown_id(make_users, name):
    attacker, victim = make_users()
    attack = ATTACKS_BY_NAME[name]
    victims_id, unknown_id = victim.ids[attack.kind], str(uuid.uuid4())

    response = attacker.attack(attack, victims_id)
    to_unknown = attacker.attack(attack, unknown_id)

    assert response.status_code == to_unknown.status_code == attack.status
    if attack.status == 200:
        assert response.json == to_unknown.json == attack.nothing
    else:
        assert response.json | {"instance": None} == to_unknown.json | {"instance": None}
