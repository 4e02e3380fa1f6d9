"""A pool of connections that loses one of them at a moment that the test chooses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from todo_api.db.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable


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
