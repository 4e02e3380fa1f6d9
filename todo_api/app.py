"""Make the application, a WSGI callable, from the settings. This module imports all parts of it.

The package `operations` has the routes for the operators of the service, such as /health.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, Response
from flask.sessions import NullSession, SessionInterface

from todo_api.auth.authentication import make_keys, require_tokens
from todo_api.auth.tokens import Verifier
from todo_api.db.pool import Pool
from todo_api.lists.blueprint import lists_blueprint
from todo_api.lists.fields import LIST
from todo_api.metrics import Metrics
from todo_api.operations import health, index, metrics
from todo_api.operations.docs import docs_blueprint
from todo_api.operations.problem_pages import problem_pages_blueprint
from todo_api.services import Services
from todo_api.tasks import blueprint as tasks
from todo_api.tasks.fields import TASK
from todo_api.users.blueprint import token_blueprint, users_blueprint
from todo_api.web.access_log import log_requests
from todo_api.web.blueprints import Api
from todo_api.web.errors import log_bug, register_error_handlers
from todo_api.web.headers import enable_cors, send_security_headers
from todo_api.web.openapi.settings import OPENAPI
from todo_api.web.options import options_response
from todo_api.web.requests import Request
from todo_api.web.validation import check_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    import flask
    from werkzeug.routing import MapAdapter

    from todo_api.auth.jwks import FetchTimes
    from todo_api.settings import Settings

log = structlog.get_logger(__name__)

# A list comes before its tasks, as in the order of locks.
RESOURCES = (LIST, TASK)


class NoSessions(SessionInterface):
    """Disables Flask's sessions and their cookies: the token identifies the user.

    Opening a Flask session would take 4 % of the time of a GET of one task.
    """

    session = NullSession()

    def open_session(self, app: Flask, request: flask.Request) -> NullSession:  # noqa: ARG002
        return self.session


class App(Flask):
    """Flask with this application's services.

    The methods below replace Flask's; hooks, async views and signals work as in Flask.
    """

    request_class = Request
    session_interface = NoSessions()
    services: Services

    def create_url_adapter(self, request: flask.Request | None) -> MapAdapter | None:
        """Return the adapter that matches the request's path with the routes.

        Flask's method also looks for subdomains and WebSockets, which this application does not
        have: that takes 6 % of the time of a GET of one task. If TRUSTED_HOSTS is set, Flask's
        method is called, because it checks the host.
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
        """Respond to OPTIONS. Flask's response has the content type of HTML, but no body."""
        return options_response(self)

    def log_exception(self, exc_info: Any) -> None:
        """Log a bug. Flask would log the path, which contains text of the client."""
        log_bug(exc_info[1])


def utc_now() -> datetime:
    return datetime.now(UTC)


def create_app(
    settings: Settings,
    fetch_times: FetchTimes | None = None,
    now: Callable[[], datetime] = utc_now,
) -> App:
    """Return the application. Its pool connects to the database when it is first used.

    `fetch_times` replaces the default intervals and timeouts for fetching an issuer's keys. `now`
    is the clock for filters by day.
    """
    app = App("todo_api", static_folder=None)
    app.config.update(OPENAPI, REQUIRE_IF_MATCH=settings.require_if_match)
    app_metrics = Metrics()
    keys = make_keys(settings, app_metrics, fetch_times) if settings.auth_mode == "jwt" else None
    app.services = Services(settings, app_metrics, Pool(settings, app_metrics), keys, now)
    # The hooks registered below run in this order before a request, and in reverse order after it.
    log_requests(app, app_metrics.observe_request if settings.metrics else None)
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
    conflicts = {
        f"ck_{resource.plural}_{name}": kind
        for resource in RESOURCES
        for name, kind in resource.conflicts.items()
    }
    api = Api(app, [resource.schemas.item for resource in RESOURCES])
    register_error_handlers(app, constraints, conflicts)
    for blueprint in (
        tasks.blueprint,
        lists_blueprint(TASK),
        users_blueprint(RESOURCES),
        token_blueprint,
        health.blueprint,
        index.blueprint,
    ):
        api.register_blueprint(blueprint)
    app.register_blueprint(docs_blueprint(api))
    # The page of the 412 has an example of a resource; any resource will do.
    app.register_blueprint(problem_pages_blueprint(example_schema=TASK.schemas.item))
    if settings.metrics:
        app_metrics.workers.set(1)
        app.register_blueprint(metrics.blueprint)
    return app
