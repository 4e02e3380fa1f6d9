"""Flask's hooks, signals and async views: they work as Flask documents, for those who add some."""

from __future__ import annotations

import asyncio

import flask
import pytest
from flask import Blueprint, g, got_request_exception, request_finished, request_started

from todo_api.web.responses import BytesResponse


@pytest.fixture
def calls():
    """What hooks were called with, in order."""
    return []


@pytest.fixture
def extended(make_app, calls):
    """The application with a blueprint of somebody else's."""
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
        return {"answered": "by a hook"} if g.number == 0 else None

    @blueprint.after_request
    def after(response):
        calls.append(("blueprint after_request", response.status_code))
        response.headers["X-Other"] = "1"
        return response

    blueprint.teardown_request(lambda error: calls.append(("blueprint teardown_request", error)))


def add_views(blueprint, calls):
    @blueprint.get("/<int:number>")
    def show():
        @flask.after_this_request
        def mark(response):
            response.headers["X-This"] = "1"
            return response

        response = BytesResponse(b"%d" % g.number, 200, {"Content-Type": "application/json"})
        response.call_on_close(lambda: calls.append(("closed",)))
        return response

    @blueprint.get("/bug")
    def bug():
        raise LookupError("what nobody should read")

    @blueprint.get("/async")
    async def later():
        await asyncio.sleep(0)
        return {"async": True}

    @blueprint.get("/folder/")
    def folder():
        here = flask.url_for(".folder", _external=True)
        return {"here": here, "livez": flask.url_for("operations.livez")}

    @blueprint.get("/session")
    def session():
        return {"session": dict(flask.session)}


def test_hooks_of_a_blueprint_are_called_for_its_views(extended, calls):
    response = extended.test_client().get("/other/7", buffered=True)

    assert response.json == 7
    assert (response.headers["X-Other"], response.headers["X-This"]) == ("1", "1")
    assert calls == [
        ("app url_value_preprocessor", "other.show", {"number": 7}),
        ("blueprint before_request", 7),
        ("blueprint after_request", 200),
        ("blueprint teardown_request", None),
        ("app teardown_request", None),
        ("app teardown_appcontext", None),
        ("closed",),
    ]


def test_hooks_of_a_blueprint_are_not_called_for_other_views(extended, calls):
    response = extended.test_client().get("/livez")

    assert "X-Other" not in response.headers
    assert calls == [
        ("app url_value_preprocessor", "operations.livez", {}),
        ("app teardown_request", None),
        ("app teardown_appcontext", None),
    ]


def test_a_hook_of_a_blueprint_may_answer(extended):
    response = extended.test_client().get("/other/0")

    assert response.json == {"answered": "by a hook"}
    assert response.headers["X-Request-Id"]


def test_a_teardown_is_told_of_the_exception_that_a_view_raised(extended, calls, log_lines):
    response = extended.test_client().get("/other/bug")

    assert response.status_code == 500
    assert response.json["type"] == "/problems/internal-error"
    assert response.headers["X-Other"] == "1"
    torn_down = dict(call for call in calls if "teardown" in call[0])
    assert torn_down.keys() == {
        "blueprint teardown_request",
        "app teardown_request",
        "app teardown_appcontext",
    }
    assert {repr(error) for error in torn_down.values()} == {
        "LookupError('what nobody should read')"
    }
    assert [line["event"] for line in log_lines() if line["level"] == "error"] == [
        "unhandled exception"
    ]


def test_a_refusal_is_no_exception_to_a_teardown(extended, calls):
    assert extended.test_client().get("/nothing").status_code == 404
    assert ("app teardown_request", None) in calls


def test_an_async_view_is_awaited(extended):
    assert extended.test_client().get("/other/async").json == {"async": True}


def test_there_is_an_empty_session(extended):
    response = extended.test_client().get("/other/session")

    assert response.json == {"session": {}}
    assert "Set-Cookie" not in response.headers


def test_addresses_have_the_host_and_the_prefix_that_were_asked_for(extended):
    client = extended.test_client()
    base = "https://todo.example/prefix"

    response = client.get("/other/folder/", base_url=base)
    redirect = client.get("/other/folder?x=1", base_url=base)

    assert response.json == {"here": f"{base}/other/folder/", "livez": "/prefix/livez"}
    assert redirect.status_code == 308
    assert redirect.location == f"{base}/other/folder/?x=1"


def test_other_hosts_than_the_trusted_ones_are_refused(extended):
    extended.config["TRUSTED_HOSTS"] = ["todo.example"]
    client = extended.test_client()

    assert client.get("/livez", base_url="http://todo.example").status_code == 200
    assert client.get("/livez", base_url="http://other.example").status_code == 400


def test_signals_are_sent(extended):
    sent = []

    def started(_, **_more):
        sent.append(("started", flask.request.path))

    def finished(_, response, **_more):
        sent.append(("finished", response.status_code))

    def failed(_, exception, **_more):
        sent.append(("failed", repr(exception)))

    with (
        request_started.connected_to(started, extended),
        request_finished.connected_to(finished, extended),
        got_request_exception.connected_to(failed, extended),
    ):
        extended.test_client().get("/livez")
        extended.test_client().get("/other/bug")
        extended.test_client().get("/nothing")

    assert sent == [
        ("started", "/livez"),
        ("finished", 200),
        ("started", "/other/bug"),
        ("failed", "LookupError('what nobody should read')"),
        ("finished", 500),
        ("started", "/nothing"),
        ("finished", 404),
    ]


@pytest.mark.parametrize("setting", ["TESTING", "PROPAGATE_EXCEPTIONS"])
def test_a_bug_is_raised_where_flask_is_told_to(extended, setting):
    extended.config[setting] = True

    with pytest.raises(LookupError):
        extended.test_client().get("/other/bug")


def test_a_body_can_be_read_again_by_a_hook(make_app, tasks_url):
    app = make_app()
    seen = []

    @app.after_request
    def read(response):
        seen.append(flask.request.get_data())
        return response

    app.test_client().post(tasks_url, data=b'{"title": 1}', content_type="application/json")

    assert seen == [b'{"title": 1}']
