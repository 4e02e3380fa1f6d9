"""The application: settings in, WSGI callable out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask

from todo_api.api import Api
from todo_api.auth import Verifier, keys_of, require_tokens
from todo_api.blueprints import metrics, operations, tasks, users
from todo_api.blueprints.docs import docs
from todo_api.document import OPENAPI
from todo_api.errors import log_bug, register_error_handlers
from todo_api.headers import send_security_headers, share_with
from todo_api.logs import log_requests
from todo_api.messages import Request
from todo_api.metrics import WORKERS, observe_request
from todo_api.pool import Pool

if TYPE_CHECKING:
    import flask
    from werkzeug.routing import MapAdapter

    from todo_api.settings import Settings

log = structlog.get_logger(__name__)


class App(Flask):
    """Flask, fitted by what it documents for that; hooks, async views and signals are its own."""

    request_class = Request

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """The routes, for the host and path that are asked for.

        Flask's own also looks for subdomains and WebSockets, of which there are none: that takes
        6 % of a read of one task. Where hosts are restricted, it is left to Flask.
        """
        if request is None or self.config["TRUSTED_HOSTS"] is not None:
            return super().create_url_adapter(request)
        return self.url_map.bind(
            request.environ.get("HTTP_HOST") or request.host,
            script_name=request.root_path,
            url_scheme=request.scheme,
            path_info=request.path,
            default_method=request.method,
            query_args=request.environ.get("QUERY_STRING"),
        )

    def log_exception(self, exc_info: Any) -> None:
        """Log a bug. Flask's own line has the path, which holds what the client wrote."""
        log_bug(exc_info[1])


def create_app(settings: Settings) -> Flask:
    """The application, whose pool connects at its first use."""
    app = App("todo_api", static_folder=None)
    app.config.update(OPENAPI, REQUIRE_IF_MATCH=settings.require_if_match)
    app.extensions["pool"] = Pool(settings)
    # In this order before a request, and in the opposite one after it.
    log_requests(app, observe_request if settings.metrics else None)
    send_security_headers(app)
    if settings.cors_origins:
        share_with(app, settings.cors_origins)
    if settings.auth_mode == "jwt":
        app.extensions["keys"] = keys = keys_of(settings)
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
