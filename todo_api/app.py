"""The application: settings in, WSGI callable out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, Response
from flask.sessions import NullSession, SessionInterface

from todo_api.api import Api
from todo_api.auth import Verifier, keys_of, require_tokens
from todo_api.blueprints import metrics, operations, tasks, users
from todo_api.blueprints.docs import docs
from todo_api.document import OPENAPI
from todo_api.errors import register_error_handlers
from todo_api.headers import send_security_headers, share_with
from todo_api.logs import log_requests
from todo_api.messages import Request
from todo_api.metrics import WORKERS, observe_request
from todo_api.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    import flask
    from flask.typing import ResponseReturnValue
    from werkzeug.routing import MapAdapter

    from todo_api.keys import Pace
    from todo_api.settings import Settings

log = structlog.get_logger(__name__)


class NoSessions(SessionInterface):
    """There are none: a request is whose its token says."""

    none = NullSession()

    def open_session(self, app: Flask, request: flask.Request) -> NullSession:  # noqa: ARG002
        return self.none


class App(Flask):
    """Flask, for plain functions: views, and what comes before and after each request alike.

    Blueprints have no such functions of their own, and nothing is torn down: to look for what is
    not there took a tenth of a request.
    """

    request_class = Request
    session_interface = NoSessions()

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """The routes, for the path that is asked for: which host it is of decides nothing here."""
        if request is None:
            return None
        return self.url_map.bind("", path_info=request.path, default_method=request.method)

    def preprocess_request(self) -> ResponseReturnValue | None:
        for check in self.before_request_funcs[None]:
            answer: Any = check()
            if answer is not None:
                return answer  # type: ignore[no-any-return]
        return None

    def process_response(self, response: Response) -> Response:
        for finish in reversed(self.after_request_funcs[None]):
            response = finish(response)
        return response

    def do_teardown_request(self, exc: object = None) -> None:
        """Nothing to do."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is: Flask looks at six of them in each request."""
        return func


def create_app(settings: Settings, pace: Pace | None = None) -> Flask:
    """The application, whose pool connects at its first use.

    `pace` is how often an issuer's keys are fetched, if other than usual.
    """
    app = App("todo_api", static_folder=None)
    app.config.update(OPENAPI, REQUIRE_IF_MATCH=settings.require_if_match)
    app.extensions["pool"] = Pool(settings)
    # In this order before a request, and in the opposite one after it.
    log_requests(app, observe_request if settings.metrics else None)
    send_security_headers(app)
    if settings.cors_origins:
        share_with(app, settings.cors_origins)
    if settings.auth_mode == "jwt":
        app.extensions["keys"] = keys = keys_of(settings, pace)
        require_tokens(app, Verifier(settings, keys))
    else:
        log.warning("AUTH_MODE=none: whoever can reach this server is whatever user they name")
    register_error_handlers(app)
    api = Api(app)
    for blueprint in (tasks.blueprint, users.users, users.session, operations.blueprint):
        api.register_blueprint(blueprint)
    app.register_blueprint(docs(api))
    if settings.metrics:
        WORKERS.set(1)
        app.register_blueprint(metrics.blueprint)
    return app
