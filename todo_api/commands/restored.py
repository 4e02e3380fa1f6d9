"""`make restored`: give the database a new epoch after a restore from a backup.

The epoch is a UUID in every sync token. Sync tokens that clients received after the backup stand
for changes that no longer exist. With a new epoch, the server responds to every older token with a
410, and the client starts a full sync.
"""

from __future__ import annotations

import sys

import structlog

from todo_api.db.connect import UnreachableError, connect
from todo_api.db.database import MAINTENANCE_ROLE
from todo_api.logs import configure_logging
from todo_api.settings import SettingsError, load_database_settings, read_environment

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


def main() -> None:
    """Set a new epoch, and log it.

    Exit with a message if the settings are invalid or the database cannot be reached.
    """
    try:
        settings = load_database_settings(read_environment())
    except SettingsError as error:
        sys.exit(str(error))
    configure_logging(settings.log_level)
    try:
        epoch = set_new_epoch(settings.database_url)
    except UnreachableError as error:
        sys.exit(str(error))
    log.info("new epoch", epoch=epoch)


if __name__ == "__main__":
    main()
