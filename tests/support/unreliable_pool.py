"""A pool of connections that loses one of them at a moment that the test chooses."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg

from todo_api.db.pool import Pool
from todo_api.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from todo_api.app import App
    from todo_api.settings import Settings


class UnreliablePool(Pool):
    """A pool that loses the connection once, before the request or before the response."""

    next_loss: tuple[str, Callable[[], object]] | None = None

    @contextmanager
    def connection(self, deadline):
        with super().connection(deadline) as connection:
            if self.next_loss:
                (moment, meanwhile), self.next_loss = self.next_loss, None
                connection.transact = lose_connection(connection, moment, meanwhile)
            yield connection


@contextmanager
def unreliable_pool(app: App, settings: Settings) -> Iterator[None]:
    """Give the application an unreliable pool and new counters; take them away at the end."""
    reliable, counters = app.services, Metrics()
    pool = UnreliablePool(settings, counters)
    app.services = replace(reliable, metrics=counters, pool=pool)
    try:
        yield
    finally:
        app.services.pool.close()
        app.services = reliable


def lose_connection(connection, moment, meanwhile):
    transact = connection.transact

    def run(*arguments):
        if moment == "request":
            connection.close()
        transact(*arguments)
        connection.close()
        meanwhile()
        raise psycopg.OperationalError("the response is lost")

    return run
