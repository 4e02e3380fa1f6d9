"""Wait for sessions of PostgreSQL that wait for a lock, and count deadlocks."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Flask

COUNT_WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
TIMEOUT = 10  # seconds

COUNT_DEADLOCKS = """
    SELECT clock_timestamp(), deadlocks FROM pg_stat_database WHERE datname = current_database()
"""
END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
        AND backend_start > %s AND pid <> pg_backend_pid()
"""


def wait_for_sessions(url: str, expected: Callable[[], int]) -> None:
    """Return when `expected()` or more sessions of this database wait for a lock.

    `expected` is called before each comparison, so it can leave out requests that have a response.
    """
    deadline = time.monotonic() + TIMEOUT
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(COUNT_WAITING).fetchone()
            if row and row[0] >= expected():
                return
            time.sleep(0.002)
    raise AssertionError(f"Fewer than {expected()} sessions wait for a lock.")


@contextmanager
def expect_no_deadlock(connection: psycopg.Connection[Any], app: Flask) -> Iterator[None]:
    """Fail if a request to the application ends in a deadlock. The application must be new.

    A session reports its deadlocks up to 10 s later, or when it ends. So this ends the sessions.
    """
    started_at, before = connection.execute(COUNT_DEADLOCKS).fetchone() or (None, 0)
    yield
    app.services.pool.close()  # type: ignore[attr-defined]
    connection.execute(END_SESSIONS, (started_at,))
    _, after = connection.execute(COUNT_DEADLOCKS).fetchone() or (None, 0)
    assert after - before == 0, "PostgreSQL had to end a deadlock."
