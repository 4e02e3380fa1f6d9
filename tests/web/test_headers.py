"""What answers tell browsers and caches, and which pages may ask (CORS)."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

if TYPE_CHECKING:
    from flask import Flask

SECRET = "a-secret-of-the-tests-that-is-long-enough"
USER = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b21"
NEVER = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b22"
PAGE = "https://app.example"
ANOTHER = "http://localhost:5173"

STRICT = "default-src 'none'; frame-ancestors 'none'"


def authorization(user_id: str = USER) -> dict[str, str]:
    token = jwt.encode({"alg": "HS256"}, {"sub": user_id, "exp": 2**32}, OctKey.import_key(SECRET))
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def api(make_app) -> Flask:
    """An application that asks for tokens, and shares with nobody."""
    app = make_app(AUTH_MODE="jwt", JWT_SECRET=SECRET)

    @app.get("/bug")
    def bug():
        raise RuntimeError("a bug")

    return app


@pytest.fixture
def shared(make_app) -> Flask:
    """An application that asks for tokens, and shares with two pages."""
    return make_app(AUTH_MODE="jwt", JWT_SECRET=SECRET, CORS_ORIGINS=f"{PAGE},{ANOTHER}")


# Each kind of answer, as a request for it: the method, the path, whether there is a token, a body.
ANSWERS = {
    200: ("GET", "/api/{user}/tasks", {}),
    201: ("POST", "/api/{user}/tasks", {"json": {"title": "x"}}),
    204: ("DELETE", "/api/{user}", {}),
    304: ("GET", "/api/{user}/tasks", {"headers": {"If-None-Match": "*"}}),
    400: ("POST", "/api/{user}/tasks", {"data": b"{", "content_type": "application/json"}),
    401: ("GET", "/api/{user}/tasks", {}),
    404: ("GET", "/api/{user}/tasks/{never}", {}),
    405: ("PATCH", "/api/{user}/tasks", {}),
    406: ("GET", "/api/{user}/tasks", {"headers": {"Accept": "text/html"}}),
    413: ("POST", "/api/{user}/tasks", {"data": b" " * 2**18, "content_type": "application/json"}),
    415: ("POST", "/api/{user}/tasks", {"data": b"x", "content_type": "text/plain"}),
    422: ("POST", "/api/{user}/tasks", {"json": {}}),
}
ERRORS = [status for status in ANSWERS if status >= 400]


def ask(app: Flask, status: int, user_id: str = USER, **headers: str):
    """The answer of this status."""
    method, path, options = ANSWERS[status]
    token = {} if status == 401 else authorization(user_id)
    answer = app.test_client().open(
        path.format(user=user_id, never=NEVER),
        method=method,
        buffered=True,
        **options | {"headers": options.get("headers", {}) | token | headers},
    )
    assert answer.status_code == status, answer.text
    return answer


def secured(answer, policy: str = STRICT) -> None:
    assert answer.headers.getlist("X-Content-Type-Options") == ["nosniff"]
    assert answer.headers.getlist("Referrer-Policy") == ["no-referrer"]
    assert answer.headers.getlist("Content-Security-Policy") == [policy]
    assert len(answer.headers.getlist("Cache-Control")) == 1
    assert "Server" not in answer.headers
    assert "X-Powered-By" not in answer.headers
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("status", ANSWERS)
def test_no_answer_is_sniffed_framed_or_run(api, user_id, status):
    answer = ask(api, status, user_id)

    secured(answer)


def test_the_answer_to_a_bug_is_no_exception(api):
    answer = api.test_client().get("/bug", headers=authorization())

    assert answer.status_code == 500
    assert answer.headers["Cache-Control"] == "no-store"
    secured(answer)


def test_every_open_route_is_secured_too(api):
    for rule in api.url_map.iter_rules():
        if "<" in rule.rule or rule.rule.startswith(("/docs", "/api", "/problems/")):
            continue
        secured(api.test_client().get(rule.rule, buffered=True))


@pytest.mark.parametrize("status", [200, 201, 304])
def test_a_users_data_are_kept_by_the_users_own_client_only(api, user_id, status):
    answer = ask(api, status, user_id)

    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.vary.as_set(preserve_casing=True) == {"Authorization"}
    assert answer.headers["ETag"]


@pytest.mark.parametrize("status", [*ERRORS, 204])
def test_a_failure_and_an_empty_answer_are_kept_by_nobody(api, user_id, status):
    answer = ask(api, status, user_id)

    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/api/session", "/livez", "/health"])
def test_what_is_true_for_now_only_is_kept_by_nobody(api, path):
    answer = api.test_client().get(path, headers=authorization())

    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"


class Page(HTMLParser):
    """What a page loads, by the directive of its policy, and what it would run by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: dict[str, set[str]] = {
            "script-src": set(),
            "style-src": set(),
            "img-src": set(),
        }
        self.inline: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._within = tag
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.inline += [v for v in given.values() if v and v.lower().startswith("javascript:")]
        if tag == "script":
            self.loads["script-src"].add(given.get("src", "inline"))
        elif tag == "link":
            kind = "img-src" if "icon" in given["rel"] else "style-src"
            self.loads[kind].add(given["href"])
        else:
            assert "src" not in given, tag

    def handle_data(self, data):
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag):  # noqa: ARG002  HTMLParser's signature
        self._within = ""


def directives(policy: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


# Directives of a policy that default-src does not cover.
CLOSED = ("base-uri", "form-action", "frame-ancestors")


def test_a_problem_page_loads_what_its_policy_allows_and_no_more(api):
    client = api.test_client()
    answer = client.get("/problems/invalid", headers={"Accept": "text/html"})

    policy = directives(answer.headers["Content-Security-Policy"])
    page = Page(answer.text)

    secured(answer, answer.headers["Content-Security-Policy"])
    assert set(policy) == {"default-src", "style-src", "img-src", *CLOSED}
    assert all(policy[directive] == ["'none'"] for directive in ("default-src", *CLOSED))
    assert policy["style-src"] == policy["img-src"] == ["'self'"]
    assert page.inline == []
    assert page.loads == {
        "script-src": set(),
        "style-src": {"../docs/problem.css"},
        "img-src": {"../docs/favicon-32x32.png"},
    }
    for address in page.loads["style-src"] | page.loads["img-src"]:
        assert client.get(address.removeprefix(".."), buffered=True).status_code == 200


def test_the_docs_page_loads_what_its_policy_allows_and_no_more(api):
    client = api.test_client()
    answer = client.get("/docs", buffered=True)

    policy = directives(answer.headers["Content-Security-Policy"])
    page = Page(answer.text)

    secured(answer, answer.headers["Content-Security-Policy"])
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["script-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'"]
    assert page.inline == []
    for directive, addresses in page.loads.items():
        assert addresses
        assert "'self'" in policy[directive]
        for address in addresses:
            assert re.fullmatch(r"docs/[\w.-]+", address)  # of this server, wherever it is mounted
            asset = client.get(f"/{address}", buffered=True)
            assert asset.status_code == 200
            secured(asset, STRICT)


def test_an_asset_of_the_docs_page_has_its_type(api):
    """With nosniff, a browser runs no script and applies no style that is called anything else."""
    types = {
        path: api.test_client().get(f"/docs/{path}", buffered=True).mimetype
        for path in ("start.js", "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
    }

    assert types == {
        "start.js": "text/javascript",
        "swagger-ui-bundle.js": "text/javascript",
        "swagger-ui.css": "text/css",
        "favicon-32x32.png": "image/png",
    }


@pytest.fixture(scope="module")
def gunicorn(pytestconfig, tmp_path_factory):
    """The port of a server whose database nobody listens for, and that reads no .env of ours."""
    root = pytestconfig.rootpath
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/nothing", "JWT_SECRET": SECRET}
    given = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--config", root / "gunicorn.conf.py"],
        cwd=tmp_path_factory.mktemp("gunicorn"),
        env=given | nowhere | {"PORT": str(port), "WEB_CONCURRENCY": "1", "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    )
    yield port
    server.terminate()
    server.wait(timeout=20)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET /livez HTTP/1.1"], "200"),
        (["GET /nothing HTTP/1.1"], "401"),
        (["nonsense"], "400"),
        (["GET /livez HTTP/1.1", f"X: {'x' * 10_000}"], "431"),
    ],
)
def test_the_server_tells_no_version(gunicorn, lines, status):
    """Neither in an answer of ours nor in one of gunicorn's own."""
    answer = exchange(gunicorn, *lines)

    assert answer.split(" ", 2)[1] == status
    head = answer.partition("\r\n\r\n")[0]
    named = re.findall(r"(?im)^(?:server|x-powered-by|via):(.*)$", head)
    assert not re.search("[0-9]|python|flask|werkzeug", str(named), re.IGNORECASE)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (["{good}"], "200"),
        (["{good}", "{good}"], "401"),
        (["{good}", "Bearer x.y.z"], "401"),
        (["Bearer x.y.z", "{good}"], "401"),
        (["{good}", ""], "401"),
        (["Basic dXNlcjpwYXNz", "{good}"], "401"),
    ],
)
def test_the_server_takes_one_authorization_field(gunicorn, fields, status):
    """Two servers in a row might each read another one of two."""
    good = authorization()["Authorization"]

    answer = exchange(
        gunicorn,
        "GET /api/session HTTP/1.1",
        *[f"Authorization: {field.format(good=good)}" for field in fields],
    )

    assert answer.split(" ", 2)[1] == status


def exchange(port: int, *lines: str) -> str:
    """What a server answers to these lines; it may take a while to start."""
    deadline = time.monotonic() + 20
    while True:
        try:
            opened = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with opened:
        opened.sendall("\r\n".join([*lines, "Host: x", "Connection: close", "", ""]).encode())
        parts = iter(lambda: opened.recv(65536), b"")
        return b"".join(parts).decode("latin-1")


def preflight(app: Flask, origin: str | None, path: str = f"/api/{USER}/tasks", **headers: str):
    """The answer to what a browser asks before the request; it carries no token."""
    asked = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }
    sent = asked | ({} if origin is None else {"Origin": origin}) | headers
    return app.test_client().options(path, headers=sent)


def names(field: str) -> set[str]:
    return {name.strip().lower() for name in field.split(",")}


def cors(answer) -> dict[str, str]:
    return {n: value for n, value in answer.headers if n.lower().startswith("access-control-")}


@pytest.mark.parametrize("status", ANSWERS)
def test_without_a_setting_no_page_elsewhere_reads_an_answer(api, user_id, status):
    answer = ask(api, status, user_id, Origin=PAGE)

    assert cors(answer) == {}
    assert "origin" not in answer.vary


def test_without_a_setting_a_preflight_is_a_request_without_a_token(api):
    answer = preflight(api, PAGE)

    assert answer.status_code == 401
    assert cors(answer) == {}


@pytest.mark.parametrize("origin", [PAGE, ANOTHER])
@pytest.mark.parametrize(
    "path", [f"/api/{USER}/tasks", f"/api/{USER}/tasks/{NEVER}", f"/api/{NEVER}", "/api/session"]
)
def test_a_preflight_of_an_allowed_page_is_answered_without_a_token(shared, path, origin):
    answer = preflight(shared, origin, path)

    assert answer.status_code == 204
    assert answer.data == b""
    assert "Content-Type" not in answer.headers
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert names(answer.headers["Access-Control-Allow-Methods"]) >= {
        *("get", "head", "post", "put", "patch", "delete")
    }
    assert names(answer.headers["Access-Control-Allow-Headers"]) >= {
        *("authorization", "content-type", "idempotency-key", "if-match", "if-none-match")
    }
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "origin" in answer.vary
    secured(answer)


def test_a_preflight_tells_nobody_what_there_is(shared):
    """A path of a user, of another, and of nothing: the same answer."""
    told = [
        {
            name: value
            for name, value in preflight(shared, PAGE, path).headers
            if name != "X-Request-Id"
        }
        for path in (f"/api/{USER}/tasks", f"/api/{NEVER}/tasks", "/api/nothing", "/nothing")
    ]

    assert all(one == other for one, other in pairwise(told))


STRANGERS = [
    "https://attacker.example",
    "null",
    "",
    "*",
    "http://app.example",
    "https://app.example:443",
    "https://app.example:8443",
    "https://app.example/",
    "https://app.example.attacker.example",
    "https://attacker-app.example",
    "https://attacker.example/https://app.example",
    "https://app.example@attacker.example",
    "https://sub.app.example",
    "https://app.exampl",
    "https://app.examplee",
    "https://appxexample",
    "https://APP.example",
    "HTTPS://app.example",
    "https://app.example https://attacker.example",
    "https://app.example,https://attacker.example",
    f"{PAGE},{ANOTHER}",
    "http://localhost",
    "http://localhost:51730",
    "app.example",
]


@pytest.mark.parametrize("origin", [*STRANGERS, None])
def test_a_preflight_of_another_page_allows_nothing(shared, origin):
    answer = preflight(shared, origin)

    assert answer.status_code == 204
    assert cors(answer) == {}
    assert "origin" in answer.vary


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("status", [200, 401])
def test_another_page_reads_no_answer(shared, user_id, origin, status):
    answer = ask(shared, status, user_id, Origin=origin)

    assert cors(answer) == {}
    assert "origin" in answer.vary


@pytest.mark.parametrize("origin", [PAGE, ANOTHER])
@pytest.mark.parametrize("status", ANSWERS)
def test_an_allowed_page_reads_every_answer(shared, user_id, status, origin):
    answer = ask(shared, status, user_id, Origin=origin)

    assert cors(answer).keys() == {"Access-Control-Allow-Origin", "Access-Control-Expose-Headers"}
    assert answer.headers.getlist("Access-Control-Allow-Origin") == [origin]
    assert names(answer.headers["Access-Control-Expose-Headers"]) >= {
        *("etag", "link", "location", "retry-after", "x-request-id")
    }
    assert "origin" in answer.vary
    secured(answer)


@pytest.mark.parametrize("status", ANSWERS)
def test_a_cache_learns_that_the_page_matters_though_none_is_named(shared, user_id, status):
    answer = ask(shared, status, user_id)

    assert "origin" in answer.vary
    assert ("authorization" in answer.vary) == (status in (200, 201, 304))
    assert cors(answer) == {}


def test_an_allowed_page_needs_a_token_all_the_same(shared):
    answer = shared.test_client().options(f"/api/{USER}/tasks", headers={"Origin": PAGE})

    assert answer.status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_no_request_but_a_preflight_gets_by_as_one(shared, method):
    answer = shared.test_client().open(
        f"/api/{USER}/tasks",
        method=method,
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "OPTIONS",
            "X-HTTP-Method-Override": "OPTIONS",
        },
    )

    assert answer.status_code == 401


def test_no_page_may_send_cookies(shared, user_id):
    answers = [preflight(shared, PAGE), ask(shared, 200, user_id, Origin=PAGE)]

    for answer in answers:
        assert "Access-Control-Allow-Credentials" not in answer.headers
