"""The application: settings in, WSGI callable out."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
from flask import Flask

from todo_api.api import Api
from todo_api.blueprints import operations, tasks
from todo_api.blueprints.docs import docs
from todo_api.database import Database
from todo_api.errors import register_error_handlers
from todo_api.logs import log_requests

if TYPE_CHECKING:
    from todo_api.settings import Settings

log = structlog.get_logger(__name__)

OPENAPI = {
    "API_TITLE": "Todo API",
    "API_VERSION": version("todo-api"),
    "OPENAPI_VERSION": "3.1.0",
    "API_SPEC_OPTIONS": {
        "info": {
            "description": "A todo backend in which every user owns tasks, and sees no other's.",
            "license": {"name": "MIT", "identifier": "MIT"},
        }
    },
}


def create_app(settings: Settings) -> Flask:
    """The application with its database, which connects at its first use."""
    if settings.auth_mode == "none":
        log.warning("AUTH_MODE=none: whoever can reach this server is whatever user they name")
    app = Flask("todo_api", static_folder=None)
    app.config.update(OPENAPI)
    app.extensions["database"] = Database(settings)
    log_requests(app)
    register_error_handlers(app)
    api = Api(app)
    api.register_blueprint(tasks.blueprint)
    api.register_blueprint(operations.blueprint)
    app.register_blueprint(docs(api))
    return app
