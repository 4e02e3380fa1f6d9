"""The services of an application, in one typed object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from flask import current_app

from todo_api.db.database import Database
from todo_api.web.requests import current_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from todo_api.auth.keys import Keys
    from todo_api.db.pool import Pool
    from todo_api.metrics import Metrics
    from todo_api.settings import Settings


@dataclass(frozen=True)
class Services:
    """The services of one application. `keys` is None with AUTH_MODE=none.

    `now` returns the time in UTC. `time_zones` has the time zones of users, as far as this worker
    remembers them: they may have changed since.
    """

    settings: Settings
    metrics: Metrics
    pool: Pool
    keys: Keys | None
    now: Callable[[], datetime]
    time_zones: dict[UUID, str] = field(default_factory=dict)


def current_services() -> Services:
    """Return the services of the application that serves this request."""
    return cast("Services", current_app.services)  # type: ignore[attr-defined]  # app.App has them


def database() -> Database:
    """Return the database with the deadline of this request."""
    pool = current_services().pool
    return Database(pool, current_request().started + pool.request_timeout)
