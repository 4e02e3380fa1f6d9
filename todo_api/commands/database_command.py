"""The common part of the commands that work on the database: settings, log and error messages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from todo_api.db.connect import UnreachableError
from todo_api.logs import configure_logging
from todo_api.settings import SettingsError, load_database_settings, read_environment

if TYPE_CHECKING:
    from collections.abc import Callable


def run_on_database(work: Callable[[str], None]) -> None:
    """Call `work` with the URL of the database.

    Exit with a message if the settings are invalid or the database cannot be reached.
    """
    try:
        settings = load_database_settings(read_environment())
        configure_logging(settings.log_level)
        work(settings.database_url)
    except (SettingsError, UnreachableError) as error:
        sys.exit(str(error))
