"""The root path: JSON for programs, a redirect to the page for browsers, open to all."""

from importlib.metadata import version

import pytest

SECRET = "a-secret-of-the-tests-that-is-long-enough"

# The Accept headers of browsers for a page, and below those of curl, fetch and libraries.
BROWSERS = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "text/html, application/xhtml+xml, image/jxr, */*",
    "text/html",
    "application/json;q=0.5, text/html",
]
PROGRAMS = [None, "*/*", "application/json", "application/*", "text/html;q=0.5, */*"]


@pytest.fixture
def api(shared_app):
    """A client without a token, of an application that requires tokens."""
    return shared_app(AUTH_MODE="jwt", JWT_SECRET=SECRET).test_client()


@pytest.mark.parametrize("accept", PROGRAMS)
def test_program_gets_name_version_and_paths(api, accept):
    answer = api.get("/", headers={} if accept is None else {"Accept": accept})

    assert answer.status_code == 200
    assert answer.mimetype == "application/json"
    assert answer.json == {
        "name": "Todo API",
        "version": version("todo-api"),
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    for path in (answer.json["docs"], answer.json["openapi"]):
        assert api.get(path, buffered=True).status_code == 200


@pytest.mark.parametrize("accept", BROWSERS)
def test_browser_is_redirected_to_the_page(api, accept):
    answer = api.get("/", headers={"Accept": accept})

    assert answer.status_code == 302
    assert answer.headers["Location"] == "/docs"
    assert answer.data == b""
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("accept", [PROGRAMS[0], BROWSERS[0]])
def test_cache_keeps_both_responses_apart_and_not_for_long(api, accept):
    answer = api.get("/", headers={} if accept is None else {"Accept": accept})

    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.headers["Vary"] == "Accept"


def test_other_media_types_are_not_acceptable(api):
    answer = api.get("/", headers={"Accept": "image/png"})

    assert answer.status_code == 406
    assert answer.headers["Cache-Control"] == "no-store"
