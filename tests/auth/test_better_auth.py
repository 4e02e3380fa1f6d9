"""Tokens of a real Better Auth server, from sign-up to the deletion of a key."""

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
FAST_PACE = FetchTimes(refresh=0.5, min_interval=0.1)
TIMEOUT = 20  # seconds


@pytest.fixture(scope="module")
def installed_packages() -> None:
    install(FOLDER)


class BetterAuth:
    """A running Better Auth server, with the requests of its users and its administrator."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sign_up(self) -> str:
        """Create a user and return the cookie of the session."""
        email = f"{uuid.uuid4().hex}@example.com"
        body = {"name": "Ada", "email": email, "password": "correct horse battery staple"}
        with self._send("POST", "/api/auth/sign-up/email", body) as response:
            return response.headers["Set-Cookie"].partition(";")[0]

    def get_token(self, cookie: str) -> str:
        with self._send("GET", "/api/auth/token", headers={"Cookie": cookie}) as response:
            return json.load(response)["token"]

    def get_subject(self, cookie: str) -> str:
        with self._send("GET", "/api/auth/get-session", headers={"Cookie": cookie}) as response:
            return json.load(response)["user"]["id"]

    def delete_keys(self) -> None:
        self._send("DELETE", "/keys").close()

    def _send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | (headers or {}),
        )
        return urllib.request.urlopen(request, timeout=TIMEOUT)


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
def issuer(installed_packages) -> Iterator[BetterAuth]:  # noqa: ARG001  the server needs its packages
    with better_auth() as server:
        yield server


@pytest.fixture
def new_client(make_app):
    """Create a test client of an application that trusts the issuer."""
    with ExitStack() as stack:

        def make(issuer: BetterAuth, fetch_times: FetchTimes = FAST_PACE) -> FlaskClient:
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


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def test_new_user_creates_and_lists_tasks(client, issuer):
    token = bearer(issuer.get_token(issuer.sign_up()))

    user_id = client.get("/api/session", **token).json["user_id"]
    created = client.post(f"/api/{user_id}/tasks", json={"title": "Buy oat milk"}, **token)
    listed = client.get(f"/api/{user_id}/tasks", **token)

    assert created.status_code == 201
    assert created.json["user_id"] == user_id
    assert listed.json == [created.json]


def test_user_cannot_read_or_delete_tasks_of_another_user(client, issuer):
    ada, grace = (bearer(issuer.get_token(issuer.sign_up())) for _ in range(2))
    ada_id, grace_id = (
        client.get("/api/session", **headers).json["user_id"] for headers in (ada, grace)
    )
    task = client.post(f"/api/{ada_id}/tasks", json={"title": "Buy oat milk"}, **ada).json

    for path in (f"/api/{ada_id}/tasks/{task['id']}", f"/api/{grace_id}/tasks/{task['id']}"):
        assert client.get(path, **grace).status_code == 404
        assert client.delete(path, **grace).status_code == 404

    assert client.get(f"/api/{grace_id}/tasks", **grace).json == []
    assert client.get(f"/api/{ada_id}/tasks/{task['id']}", **ada).json == task


def test_user_id_is_derived_from_issuer_and_subject(client, issuer):
    cookie = issuer.sign_up()
    subject = issuer.get_subject(cookie)

    responses = [client.get("/api/session", **bearer(issuer.get_token(cookie))) for _ in range(2)]

    user_id = str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, issuer.url), subject))
    assert [response.json["subject"] for response in responses] == [subject] * 2
    assert [response.json["user_id"] for response in responses] == [user_id] * 2


@pytest.mark.usefixtures("installed_packages")
def test_uuid_subject_is_the_user_id(new_client):
    with better_auth(IDS="uuid") as issuer:
        cookie = issuer.sign_up()

        response = new_client(issuer).get("/api/session", **bearer(issuer.get_token(cookie)))

        assert response.json["user_id"] == response.json["subject"] == issuer.get_subject(cookie)


@pytest.mark.usefixtures("installed_packages")
def test_expired_token_is_refused(new_client):
    with better_auth(EXPIRATION="3s") as issuer:
        client = new_client(issuer)
        cookie = issuer.sign_up()
        token = bearer(issuer.get_token(cookie))
        assert client.get("/api/session", **token).status_code == 200

        wait_until(lambda: client.get("/api/session", **token).status_code == 401)

        refused = client.get("/api/session", **token)
        assert refused.json["detail"] == "Get a new token: this one has expired."
        assert client.get("/api/session", **bearer(issuer.get_token(cookie))).status_code == 200


def test_token_is_refused_after_its_key_is_deleted(client, issuer):
    cookie = issuer.sign_up()
    old = bearer(issuer.get_token(cookie))
    assert client.get("/api/session", **old).status_code == 200

    issuer.delete_keys()
    deleted_at = time.monotonic()
    wait_until(lambda: client.get("/api/session", **old).status_code == 401)
    duration = time.monotonic() - deleted_at

    assert duration < FAST_PACE.refresh + 5
    assert client.get("/api/session", **old).status_code == 401


def test_token_of_a_new_key_is_accepted_at_once(new_client, issuer):
    """The next refresh is an hour away: the unknown key id triggers a fetch."""
    client = new_client(issuer, FetchTimes(refresh=3600, min_interval=0.1))
    cookie = issuer.sign_up()
    assert client.get("/api/session", **bearer(issuer.get_token(cookie))).status_code == 200
    issuer.delete_keys()
    time.sleep(0.1)  # the verifier waits for no fetch during this interval

    response = client.get("/api/session", **bearer(issuer.get_token(cookie)))

    assert response.status_code == 200


def test_session_cookie_is_refused_as_a_token(client, issuer):
    cookie = issuer.sign_up()

    response = client.get("/api/session", **bearer(cookie.partition("=")[2]))

    assert response.status_code == 401
