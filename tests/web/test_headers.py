"""Headers for browsers and caches: security headers, Cache-Control, Vary, and CORS."""

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
UNKNOWN_ID = "019aa5c8-6f3a-7cc4-9a51-3f0a4a9d7b22"
ORIGIN = "https://app.example"
OTHER_ORIGIN = "http://localhost:5173"

STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'"


def authorization(user_id: str = USER) -> dict[str, str]:
    token = jwt.encode({"alg": "HS256"}, {"sub": user_id, "exp": 2**32}, OctKey.import_key(SECRET))
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def api(shared_app) -> Flask:
    """An application that needs tokens, without CORS."""
    return shared_app(AUTH_MODE="jwt", JWT_SECRET=SECRET)


@pytest.fixture
def api_with_cors(shared_app) -> Flask:
    """An application that needs tokens, with CORS for two origins."""
    return shared_app(AUTH_MODE="jwt", JWT_SECRET=SECRET, CORS_ORIGINS=f"{ORIGIN},{OTHER_ORIGIN}")


# By status: the method, the path and the options of a request whose response has this status.
REQUESTS = {
    200: ("GET", "/api/{user}/tasks", {}),
    201: ("POST", "/api/{user}/tasks", {"json": {"title": "x"}}),
    204: ("DELETE", "/api/{user}", {}),
    304: ("GET", "/api/{user}/tasks", {"headers": {"If-None-Match": "*"}}),
    400: ("POST", "/api/{user}/tasks", {"data": b"{", "content_type": "application/json"}),
    401: ("GET", "/api/{user}/tasks", {}),
    404: ("GET", "/api/{user}/tasks/{unknown_id}", {}),
    405: ("PATCH", "/api/{user}/tasks", {}),
    406: ("GET", "/api/{user}/tasks", {"headers": {"Accept": "text/html"}}),
    413: (
        "POST",
        "/api/{user}/tasks",
        {"data": b" " * (2**18 + 1), "content_type": "application/json"},
    ),
    415: ("POST", "/api/{user}/tasks", {"data": b"x", "content_type": "text/plain"}),
    422: ("POST", "/api/{user}/tasks", {"json": {}}),
}
ERROR_STATUSES = [status for status in REQUESTS if status >= 400]


def get_response(app: Flask, status: int, user_id: str = USER, **headers: str):
    """Send the request for this status, and return its response."""
    method, path, options = REQUESTS[status]
    token = {} if status == 401 else authorization(user_id)
    response = app.test_client().open(
        path.format(user=user_id, unknown_id=UNKNOWN_ID),
        method=method,
        buffered=True,
        **options | {"headers": options.get("headers", {}) | token | headers},
    )
    assert response.status_code == status, response.text
    return response


def assert_security_headers(response, policy: str = STRICT_POLICY) -> None:
    assert response.headers.getlist("X-Content-Type-Options") == ["nosniff"]
    assert response.headers.getlist("Referrer-Policy") == ["no-referrer"]
    assert response.headers.getlist("Content-Security-Policy") == [policy]
    assert len(response.headers.getlist("Cache-Control")) == 1
    assert "Server" not in response.headers
    assert "X-Powered-By" not in response.headers
    assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("status", REQUESTS)
def test_every_response_has_the_security_headers(api, user_id, status):
    response = get_response(api, status, user_id)

    assert_security_headers(response)


def test_response_to_a_bug_has_the_security_headers(make_app):
    api = make_app(AUTH_MODE="jwt", JWT_SECRET=SECRET)

    @api.get("/bug")
    def bug():
        raise RuntimeError("a bug")

    response = api.test_client().get("/bug", headers=authorization())

    assert response.status_code == 500
    assert response.headers["Cache-Control"] == "no-store"
    assert_security_headers(response)


def test_every_route_without_a_token_has_the_security_headers(api):
    for rule in api.url_map.iter_rules():
        if "<" in rule.rule or rule.rule.startswith(("/docs", "/api", "/problems/")):
            continue
        assert_security_headers(api.test_client().get(rule.rule, buffered=True))


@pytest.mark.parametrize("status", [200, 201, 304])
def test_data_of_a_user_may_be_cached_only_privately(api, user_id, status):
    response = get_response(api, status, user_id)

    assert response.headers["Cache-Control"] == "private, no-cache"
    assert response.vary.as_set(preserve_casing=True) == {"Authorization"}
    assert response.headers["ETag"]


@pytest.mark.parametrize("status", [*ERROR_STATUSES, 204])
def test_errors_and_empty_responses_are_not_cached(api, user_id, status):
    response = get_response(api, status, user_id)

    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/api/session", "/livez", "/health"])
def test_session_and_health_are_not_cached(api, path):
    response = api.test_client().get(path, headers=authorization())

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"


class Page(HTMLParser):
    """The files that an HTML page loads, by directive of its policy, and its inline code."""

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
        attributes_by_name = dict(attributes)
        self._within = tag
        self.inline += [
            name for name in attributes_by_name if name.startswith("on") or name == "style"
        ]
        self.inline += [
            v for v in attributes_by_name.values() if v and v.lower().startswith("javascript:")
        ]
        if tag == "script":
            self.loads["script-src"].add(attributes_by_name.get("src", "inline"))
        elif tag == "link":
            kind = "img-src" if "icon" in attributes_by_name["rel"] else "style-src"
            self.loads[kind].add(attributes_by_name["href"])
        else:
            assert "src" not in attributes_by_name, tag

    def handle_data(self, data):
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag):  # noqa: ARG002  HTMLParser's signature
        self._within = ""


def directives(policy: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


def test_docs_page_loads_only_files_that_its_policy_allows(api):
    client = api.test_client()
    response = client.get("/docs", buffered=True)

    policy = directives(response.headers["Content-Security-Policy"])
    page = Page(response.text)

    assert_security_headers(response, response.headers["Content-Security-Policy"])
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["script-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'"]
    assert page.inline == []
    for directive, addresses in page.loads.items():
        assert addresses
        assert "'self'" in policy[directive]
        for address in addresses:
            assert re.fullmatch(r"docs/[\w.-]+", address)  # relative: correct under any prefix
            asset = client.get(f"/{address}", buffered=True)
            assert asset.status_code == 200
            assert_security_headers(asset, STRICT_POLICY)


def test_files_of_the_docs_page_have_their_media_types(api):
    """With nosniff, a browser ignores scripts and styles that have other media types."""
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
def gunicorn_port(pytestconfig, tmp_path_factory):
    """The port of a server whose database is unreachable and whose folder has no .env."""
    root = pytestconfig.rootpath
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"DATABASE_URL": "postgresql://127.0.0.1:1/nothing", "JWT_SECRET": SECRET}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--config", root / "gunicorn.conf.py"],
        cwd=tmp_path_factory.mktemp("gunicorn"),
        env=inherited
        | settings
        | {"PORT": str(port), "WEB_CONCURRENCY": "1", "PYTHONPATH": str(root)},
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
def test_response_headers_contain_no_version(gunicorn_port, lines, status):
    """Some of these responses come from the application, and some from gunicorn."""
    response = exchange(gunicorn_port, *lines)

    assert response.split(" ", 2)[1] == status
    head = response.partition("\r\n\r\n")[0]
    server_headers = re.findall(r"(?im)^(?:server|x-powered-by|via):(.*)$", head)
    assert not re.search("[0-9]|python|flask|werkzeug", str(server_headers), re.IGNORECASE)


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
def test_request_with_two_authorization_headers_is_refused(gunicorn_port, fields, status):
    """A proxy and this server might otherwise read different ones."""
    valid = authorization()["Authorization"]

    response = exchange(
        gunicorn_port,
        "GET /api/session HTTP/1.1",
        *[f"Authorization: {field.format(good=valid)}" for field in fields],
    )

    assert response.split(" ", 2)[1] == status


def exchange(port: int, *lines: str) -> str:
    """Send a request with these lines when the server has started; return the whole response."""
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with connection:
        connection.sendall("\r\n".join([*lines, "Host: x", "Connection: close", "", ""]).encode())
        parts = iter(lambda: connection.recv(65536), b"")
        return b"".join(parts).decode("latin-1")


def preflight(app: Flask, origin: str | None, path: str = f"/api/{USER}/tasks", **headers: str):
    """Send the preflight request of a browser, which has no token; return its response."""
    request_headers = {
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }
    headers = request_headers | ({} if origin is None else {"Origin": origin}) | headers
    return app.test_client().options(path, headers=headers)


def split_names(field: str) -> set[str]:
    return {name.strip().lower() for name in field.split(",")}


def cors_headers(response) -> dict[str, str]:
    return {n: value for n, value in response.headers if n.lower().startswith("access-control-")}


@pytest.mark.parametrize("status", REQUESTS)
def test_responses_have_no_cors_headers_by_default(api, user_id, status):
    response = get_response(api, status, user_id, Origin=ORIGIN)

    assert cors_headers(response) == {}
    assert "origin" not in response.vary


def test_preflight_needs_a_token_by_default(api):
    response = preflight(api, ORIGIN)

    assert response.status_code == 401
    assert cors_headers(response) == {}


@pytest.mark.parametrize("origin", [ORIGIN, OTHER_ORIGIN])
@pytest.mark.parametrize(
    "path",
    [f"/api/{USER}/tasks", f"/api/{USER}/tasks/{UNKNOWN_ID}", f"/api/{UNKNOWN_ID}", "/api/session"],
)
def test_preflight_of_an_allowed_origin_needs_no_token(api_with_cors, path, origin):
    response = preflight(api_with_cors, origin, path)

    assert response.status_code == 204
    assert response.data == b""
    assert "Content-Type" not in response.headers
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert split_names(response.headers["Access-Control-Allow-Methods"]) >= {
        *("get", "head", "post", "put", "patch", "delete")
    }
    assert split_names(response.headers["Access-Control-Allow-Headers"]) >= {
        *("authorization", "content-type", "idempotency-key", "if-match", "if-none-match")
    }
    assert int(response.headers["Access-Control-Max-Age"]) > 0
    assert "origin" in response.vary
    assert_security_headers(response)


def test_preflight_response_is_the_same_for_all_paths(api_with_cors):
    """Paths of this user, of another user, and unknown paths have the same response."""
    headers = [
        {
            name: value
            for name, value in preflight(api_with_cors, ORIGIN, path).headers
            if name != "X-Request-Id"
        }
        for path in (f"/api/{USER}/tasks", f"/api/{UNKNOWN_ID}/tasks", "/api/nothing", "/nothing")
    ]

    assert all(first == second for first, second in pairwise(headers))


OTHER_ORIGINS = [
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
    f"{ORIGIN},{OTHER_ORIGIN}",
    "http://localhost",
    "http://localhost:51730",
    "app.example",
]


@pytest.mark.parametrize("origin", [*OTHER_ORIGINS, None])
def test_preflight_of_another_origin_allows_nothing(api_with_cors, origin):
    response = preflight(api_with_cors, origin)

    assert response.status_code == 204
    assert cors_headers(response) == {}
    assert "origin" in response.vary


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
@pytest.mark.parametrize("status", [200, 401])
def test_another_origin_cannot_read_responses(api_with_cors, user_id, origin, status):
    response = get_response(api_with_cors, status, user_id, Origin=origin)

    assert cors_headers(response) == {}
    assert "origin" in response.vary


@pytest.mark.parametrize("origin", [ORIGIN, OTHER_ORIGIN])
@pytest.mark.parametrize("status", REQUESTS)
def test_allowed_origin_can_read_every_response(api_with_cors, user_id, status, origin):
    response = get_response(api_with_cors, status, user_id, Origin=origin)

    assert cors_headers(response).keys() == {
        "Access-Control-Allow-Origin",
        "Access-Control-Expose-Headers",
    }
    assert response.headers.getlist("Access-Control-Allow-Origin") == [origin]
    assert split_names(response.headers["Access-Control-Expose-Headers"]) >= {
        *("etag", "link", "location", "retry-after", "x-request-id")
    }
    assert "origin" in response.vary
    assert_security_headers(response)


@pytest.mark.parametrize("status", REQUESTS)
def test_response_without_origin_has_vary_origin(api_with_cors, user_id, status):
    response = get_response(api_with_cors, status, user_id)

    assert "origin" in response.vary
    assert ("authorization" in response.vary) == (status in (200, 201, 304))
    assert cors_headers(response) == {}


def test_options_without_preflight_headers_needs_a_token(api_with_cors):
    response = api_with_cors.test_client().options(f"/api/{USER}/tasks", headers={"Origin": ORIGIN})

    assert response.status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_only_options_can_be_a_preflight(api_with_cors, method):
    response = api_with_cors.test_client().open(
        f"/api/{USER}/tasks",
        method=method,
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "OPTIONS",
            "X-HTTP-Method-Override": "OPTIONS",
        },
    )

    assert response.status_code == 401


def test_cors_allows_no_credentials(api_with_cors, user_id):
    responses = [
        preflight(api_with_cors, ORIGIN),
        get_response(api_with_cors, 200, user_id, Origin=ORIGIN),
    ]

    for response in responses:
        assert "Access-Control-Allow-Credentials" not in response.headers
