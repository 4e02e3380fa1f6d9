"""`make restored`: give the database a new epoch after a restore from a backup.

The epoch is a UUID in every sync token. Sync tokens that clients received after the backup stand
for changes that no longer exist. With a new epoch, the server responds to every older token with a
410, and the client starts a full sync.
"""

from __future__ import annotations

import structlog

from todo_api.commands.database_command import run_on_database
from todo_api.db.connect import connect
from todo_api.db.database import MAINTENANCE_ROLE

log = structlog.get_logger(__name__)


def set_new_epoch(url: str) -> str:
    """Give the database a new epoch; return it. Raises UnreachableError."""
    with connect(url) as connection:
        connection.execute("SELECT set_config('role', %s, true)", (MAINTENANCE_ROLE,))
        row = connection.execute(
            "UPDATE database_state SET epoch = gen_random_uuid() RETURNING epoch::text"
        ).fetchone()
    assert row is not None  # noqa: S101  a migration has made the table with its only row
    epoch: str = row[0]
    return epoch


def set_and_log_epoch(url: str) -> None:
    log.info("new epoch", epoch=set_new_epoch(url))


if __name__ == "__main__":
    run_on_database(set_and_log_epoch)
