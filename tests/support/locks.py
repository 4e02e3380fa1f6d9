"""Wait for sessions of PostgreSQL that wait for a lock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT_WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
TIMEOUT = 10  # seconds


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
