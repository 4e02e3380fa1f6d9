"""Hooks, signals and async views of other developers work as in Flask's documentation."""

from __future__ import annotations

import asyncio

import flask
import pytest
from flask import Blueprint, g, got_request_exception, request_finished, request_started

from todo_api.web.responses import BytesResponse


@pytest.fixture
def calls():
    """The calls of hooks, with their arguments, in order."""
    return []


@pytest.fixture
def app_with_hooks(make_app, calls):
    """An application with hooks, and with a blueprint that is not part of todo_api."""
    app = make_app()
    blueprint = Blueprint("other", __name__, url_prefix="/other")
    add_hooks(blueprint, calls)
    add_views(blueprint, calls)
    app.register_blueprint(blueprint)

    @app.url_value_preprocessor
    def preprocess(endpoint, values):
        calls.append(("app url_value_preprocessor", endpoint, dict(values or {})))

    app.teardown_request(lambda error: calls.append(("app teardown_request", error)))
    app.teardown_appcontext(lambda error: calls.append(("app teardown_appcontext", error)))
    return app


def add_hooks(blueprint, calls):
    @blueprint.url_value_preprocessor
    def preprocess(_, values):
        g.number = values.pop("number", None)

    @blueprint.before_request
    def before():
        calls.append(("blueprint before_request", g.number))
        return {"response": "of a hook"} if g.number == 0 else None

    @blueprint.after_request
    def after(response):
        calls.append(("blueprint after_request", response.status_code))
        response.headers["X-Other"] = "1"
        return response

    blueprint.teardown_request(lambda error: calls.append(("blueprint teardown_request", error)))


def add_views(blueprint, calls):
    @blueprint.get("/<int:number>")
    def show_number():
        @flask.after_this_request
        def add_header(response):
            response.headers["X-This"] = "1"
            return response

        response = BytesResponse(b"%d" % g.number, 200, {"Content-Type": "application/json"})
        response.call_on_close(lambda: calls.append(("closed",)))
        return response

    @blueprint.get("/bug")
    def bug():
        raise LookupError("an internal detail")

    @blueprint.get("/async")
    async def wait():
        await asyncio.sleep(0)
        return {"async": True}

    @blueprint.get("/folder/")
    def folder():
        own_url = flask.url_for(".folder", _external=True)
        return {"own": own_url, "livez": flask.url_for("operations.livez")}

    @blueprint.get("/session")
    def session():
        return {"session": dict(flask.session)}


def test_hooks_of_a_blueprint_are_called_for_its_views(app_with_hooks, calls):
    response = app_with_hooks.test_client().get("/other/7", buffered=True)

    assert response.json == 7
    assert (response.headers["X-Other"], response.headers["X-This"]) == ("1", "1")
    assert calls == [
        ("app url_value_preprocessor", "other.show_number", {"number": 7}),
        ("blueprint before_request", 7),
        ("blueprint after_request", 200),
        ("blueprint teardown_request", None),
        ("app teardown_request", None),
        ("app teardown_appcontext", None),
        ("closed",),
    ]


def test_hooks_of_a_blueprint_are_not_called_for_other_views(app_with_hooks, calls):
    response = app_with_hooks.test_client().get("/livez")

    assert "X-Other" not in response.headers
    assert calls == [
        ("app url_value_preprocessor", "operations.livez", {}),
        ("app teardown_request", None),
        ("app teardown_appcontext", None),
    ]


def test_before_request_hook_may_return_a_response(app_with_hooks):
    response = app_with_hooks.test_client().get("/other/0")

    assert response.json == {"response": "of a hook"}
    assert response.headers["X-Request-Id"]


def test_teardown_hooks_get_the_exception_of_a_view(app_with_hooks, calls, log_lines):
    response = app_with_hooks.test_client().get("/other/bug")

    assert response.status_code == 500
    assert response.json["type"] == "/problems/internal-error"
    assert response.headers["X-Other"] == "1"
    teardown_errors = dict(call for call in calls if "teardown" in call[0])
    assert teardown_errors.keys() == {
        "blueprint teardown_request",
        "app teardown_request",
        "app teardown_appcontext",
    }
    assert {repr(error) for error in teardown_errors.values()} == {
        "LookupError('an internal detail')"
    }
    assert [line["event"] for line in log_lines() if line["level"] == "error"] == [
        "unhandled exception"
    ]


def test_teardown_hooks_get_no_exception_for_a_404(app_with_hooks, calls):
    assert app_with_hooks.test_client().get("/nothing").status_code == 404
    assert ("app teardown_request", None) in calls


def test_an_async_view_is_awaited(app_with_hooks):
    assert app_with_hooks.test_client().get("/other/async").json == {"async": True}


def test_session_is_empty_and_sets_no_cookie(app_with_hooks):
    response = app_with_hooks.test_client().get("/other/session")

    assert response.json == {"session": {}}
    assert "Set-Cookie" not in response.headers


def test_urls_have_the_host_and_prefix_of_the_request(app_with_hooks):
    client = app_with_hooks.test_client()
    base = "https://todo.example/prefix"

    response = client.get("/other/folder/", base_url=base)
    redirect = client.get("/other/folder?x=1", base_url=base)

    assert response.json == {"own": f"{base}/other/folder/", "livez": "/prefix/livez"}
    assert redirect.status_code == 308
    assert redirect.location == f"{base}/other/folder/?x=1"


def test_untrusted_host_is_refused(app_with_hooks):
    app_with_hooks.config["TRUSTED_HOSTS"] = ["todo.example"]
    client = app_with_hooks.test_client()

    assert client.get("/livez", base_url="http://todo.example").status_code == 200
    assert client.get("/livez", base_url="http://other.example").status_code == 400


def test_signals_are_sent(app_with_hooks):
    signals = []

    def started(_, **_more):
        signals.append(("started", flask.request.path))

    def finished(_, response, **_more):
        signals.append(("finished", response.status_code))

    def failed(_, exception, **_more):
        signals.append(("failed", repr(exception)))

    with (
        request_started.connected_to(started, app_with_hooks),
        request_finished.connected_to(finished, app_with_hooks),
        got_request_exception.connected_to(failed, app_with_hooks),
    ):
        app_with_hooks.test_client().get("/livez")
        app_with_hooks.test_client().get("/other/bug")
        app_with_hooks.test_client().get("/nothing")

    assert signals == [
        ("started", "/livez"),
        ("finished", 200),
        ("started", "/other/bug"),
        ("failed", "LookupError('an internal detail')"),
        ("finished", 500),
        ("started", "/nothing"),
        ("finished", 404),
    ]


@pytest.mark.parametrize("setting", ["TESTING", "PROPAGATE_EXCEPTIONS"])
def test_exception_propagates_if_a_flask_setting_says_so(app_with_hooks, setting):
    app_with_hooks.config[setting] = True

    with pytest.raises(LookupError):
        app_with_hooks.test_client().get("/other/bug")


def test_after_request_hook_can_read_the_body_again(make_app, tasks_url):
    app = make_app()
    bodies = []

    @app.after_request
    def read(response):
        bodies.append(flask.request.get_data())
        return response

    app.test_client().post(tasks_url, data=b'{"title": 1}', content_type="application/json")

    assert bodies == [b'{"title": 1}']
