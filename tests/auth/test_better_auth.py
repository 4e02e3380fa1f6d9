"""Tokens of a real Better Auth server, from signing up to a key that is withdrawn."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.node import install
from todo_api.auth.jwks import FetchTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "better_auth"
BRISK = FetchTimes(refresh=0.5, min_interval=0.1)
LONG = 20  # seconds


@pytest.fixture(scope="module")
def installed() -> None:
    install(FOLDER)


class BetterAuth:
    """The server, and what its users and its administrator do with it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sign_up(self) -> str:
        """Make a user; the cookie of their session."""
        email = f"{uuid.uuid4().hex}@example.com"
        body = {"name": "Ada", "email": email, "password": "correct horse battery staple"}
        with self._ask("POST", "/api/auth/sign-up/email", body) as answer:
            return answer.headers["Set-Cookie"].partition(";")[0]

    def token(self, cookie: str) -> str:
        with self._ask("GET", "/api/auth/token", headers={"Cookie": cookie}) as answer:
            return json.load(answer)["token"]

    def subject(self, cookie: str) -> str:
        with self._ask("GET", "/api/auth/get-session", headers={"Cookie": cookie}) as answer:
            return json.load(answer)["user"]["id"]

    def drop_keys(self) -> None:
        self._ask("DELETE", "/keys").close()

    def _ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | (headers or {}),
        )
        return urllib.request.urlopen(request, timeout=LONG)


@contextmanager
def better_auth(**environ: str) -> Iterator[BetterAuth]:
    with subprocess.Popen(
        ["node", "server.mjs"],
        cwd=FOLDER,
        env=os.environ | environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield BetterAuth(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def issuer(installed) -> Iterator[BetterAuth]:  # noqa: ARG001  it must be there
    with better_auth() as server:
        yield server


@pytest.fixture
def new_client(make_app):
    """A client of an application that trusts the issuer."""
    with ExitStack() as stack:

        def make(issuer: BetterAuth, fetch_times: FetchTimes = BRISK) -> FlaskClient:
            app = make_app(
                fetch_times,
                AUTH_MODE="jwt",
                JWT_JWKS_URL=f"{issuer.url}/api/auth/jwks",
                JWT_ISSUER=issuer.url,
                JWT_AUDIENCE=issuer.url,
            )
            stack.callback(app.services.keys.close)
            return app.test_client()

        yield make


@pytest.fixture
def client(new_client, issuer) -> FlaskClient:
    return new_client(issuer)


def bearer(token: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer {token}"}}


def eventually(come: Callable[[], bool]) -> None:
    """Wait until it has come."""
    deadline = time.monotonic() + LONG
    while not come():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_whoever_signs_up_has_tasks_of_their_own(client, issuer):
    token = bearer(issuer.token(issuer.sign_up()))

    user_id = client.get("/api/session", **token).json["user_id"]
    created = client.post(f"/api/{user_id}/tasks", json={"title": "Buy oat milk"}, **token)
    listed = client.get(f"/api/{user_id}/tasks", **token)

    assert created.status_code == 201
    assert created.json["user_id"] == user_id
    assert listed.json == [created.json]


def test_another_user_cannot_see_them(client, issuer):
    ada, grace = (bearer(issuer.token(issuer.sign_up())) for _ in range(2))
    adas, graces = (client.get("/api/session", **who).json["user_id"] for who in (ada, grace))
    task = client.post(f"/api/{adas}/tasks", json={"title": "Buy oat milk"}, **ada).json

    for path in (f"/api/{adas}/tasks/{task['id']}", f"/api/{graces}/tasks/{task['id']}"):
        assert client.get(path, **grace).status_code == 404
        assert client.delete(path, **grace).status_code == 404

    assert client.get(f"/api/{graces}/tasks", **grace).json == []
    assert client.get(f"/api/{adas}/tasks/{task['id']}", **ada).json == task


def test_an_id_of_its_own_making_becomes_a_uuid_of_issuer_and_id(client, issuer):
    cookie = issuer.sign_up()
    subject = issuer.subject(cookie)

    answers = [client.get("/api/session", **bearer(issuer.token(cookie))) for _ in range(2)]

    user_id = str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, issuer.url), subject))
    assert [answer.json["subject"] for answer in answers] == [subject] * 2
    assert [answer.json["user_id"] for answer in answers] == [user_id] * 2


@pytest.mark.usefixtures("installed")
def test_a_uuid_is_the_user_id_itself(new_client):
    with better_auth(IDS="uuid") as issuer:
        cookie = issuer.sign_up()

        answer = new_client(issuer).get("/api/session", **bearer(issuer.token(cookie)))

        assert answer.json["user_id"] == answer.json["subject"] == issuer.subject(cookie)


@pytest.mark.usefixtures("installed")
def test_a_token_ends_when_it_expires(new_client):
    with better_auth(EXPIRATION="3s") as issuer:
        client = new_client(issuer)
        cookie = issuer.sign_up()
        token = bearer(issuer.token(cookie))
        assert client.get("/api/session", **token).status_code == 200

        eventually(lambda: client.get("/api/session", **token).status_code == 401)

        refused = client.get("/api/session", **token)
        assert refused.json["detail"] == "Get a new token: this one has expired."
        assert client.get("/api/session", **bearer(issuer.token(cookie))).status_code == 200


def test_a_token_ends_when_its_key_is_gone_from_the_set(client, issuer):
    cookie = issuer.sign_up()
    old = bearer(issuer.token(cookie))
    assert client.get("/api/session", **old).status_code == 200

    issuer.drop_keys()
    dropped = time.monotonic()
    eventually(lambda: client.get("/api/session", **old).status_code == 401)
    lasted = time.monotonic() - dropped

    assert lasted < BRISK.refresh + 5
    assert client.get("/api/session", **old).status_code == 401


def test_a_token_of_a_new_key_is_good_at_once(new_client, issuer):
    """Long before the keys would be refreshed: the token itself makes them so."""
    client = new_client(issuer, FetchTimes(refresh=3600, min_interval=0.1))
    cookie = issuer.sign_up()
    assert client.get("/api/session", **bearer(issuer.token(cookie))).status_code == 200
    issuer.drop_keys()
    time.sleep(0.1)  # between two fetches, nobody waits

    answer = client.get("/api/session", **bearer(issuer.token(cookie)))

    assert answer.status_code == 200


def test_the_cookie_of_its_session_is_no_token_here(client, issuer):
    cookie = issuer.sign_up()

    answer = client.get("/api/session", **bearer(cookie.partition("=")[2]))

    assert answer.status_code == 401
