"""The application: settings in, WSGI callable out. The one module that knows all the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, Response
from flask.sessions import NullSession, SessionInterface

from todo_api.auth.authentication import make_keys, require_tokens
from todo_api.auth.tokens import Verifier
from todo_api.db.pool import Pool
from todo_api.metrics import Metrics
from todo_api.operations import health, index, metrics
from todo_api.operations.docs import docs_blueprint
from todo_api.services import Services
from todo_api.tasks import blueprint as tasks
from todo_api.tasks.fields import TASK
from todo_api.users.blueprint import session, users_blueprint
from todo_api.web.access_log import log_requests
from todo_api.web.blueprints import Api
from todo_api.web.errors import log_bug, register_error_handlers
from todo_api.web.headers import enable_cors, send_security_headers
from todo_api.web.openapi.settings import OPENAPI
from todo_api.web.options import options_response
from todo_api.web.requests import Request
from todo_api.web.validation import check_requests

if TYPE_CHECKING:
    import flask
    from werkzeug.routing import MapAdapter

    from todo_api.auth.jwks import Pace
    from todo_api.settings import Settings

log = structlog.get_logger(__name__)

RESOURCES = (TASK,)


class NoSessions(SessionInterface):
    """No cookies: a request's token says whose it is. Opening Flask's takes 4 % of a read."""

    session = NullSession()

    def open_session(self, app: Flask, request: flask.Request) -> NullSession:  # noqa: ARG002
        return self.session


class App(Flask):
    """Flask with this application's services. Hooks, async views and signals are Flask's own."""

    request_class = Request
    session_interface = NoSessions()
    services: Services

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """Bind the routes to a request.

        Flask's own also looks for subdomains and WebSockets, which this application does not have:
        that takes 6 % of a read of one task. If hosts are restricted, Flask's own is used.
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

    def make_default_options_response(self) -> Response:
        """Respond to OPTIONS. Flask's own has the content type of an HTML body, and no body."""
        return options_response(self)

    def log_exception(self, exc_info: Any) -> None:
        """Log a bug. Flask's own line has the path, which holds what the client wrote."""
        log_bug(exc_info[1])


def create_app(settings: Settings, pace: Pace | None = None) -> App:
    """Return the application. Its pool connects at its first use.

    `pace` is how often an issuer's keys are fetched, if not as usual.
    """
    app = App("todo_api", static_folder=None)
    app.config.update(OPENAPI, REQUIRE_IF_MATCH=settings.require_if_match)
    counted = Metrics()
    keys = make_keys(settings, counted, pace) if settings.auth_mode == "jwt" else None
    app.services = Services(settings, counted, Pool(settings, counted), keys)
    # In this order before a request, and in reverse order after it.
    log_requests(app, counted.observe_request if settings.metrics else None)
    send_security_headers(app)
    if settings.cors_origins:
        enable_cors(app, settings.cors_origins)
    if keys is None:
        log.warning("AUTH_MODE=none: every client can act as every user")
    else:
        require_tokens(app, Verifier(settings, keys))
    check_requests(app)
    constraints = {
        name: fault for resource in RESOURCES for name, fault in resource.constraints.items()
    }
    api = Api(app, [resource.schemas.item for resource in RESOURCES])
    register_error_handlers(app, constraints)
    for blueprint in (
        *(tasks.blueprint, users_blueprint(RESOURCES), session),
        *(health.blueprint, index.blueprint),
    ):
        api.register_blueprint(blueprint)
    app.register_blueprint(docs_blueprint(api))
    if settings.metrics:
        counted.workers.set(1)
        app.register_blueprint(metrics.blueprint)
    return app
