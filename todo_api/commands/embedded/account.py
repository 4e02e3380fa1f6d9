"""The account for PostgreSQL when root starts it, because PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

# The folder for data and programs if the checkout is in a folder that only root may enter.
ROOT_HOME = Path("/var/lib/todo-api")


@dataclass(frozen=True)
class Account:
    """A system account: its user id and primary group id."""

    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Return whether the account may enter the folder and all folders above it."""
        for each in (folder, *folder.parents):
            status = each.stat()
            if status.st_uid == self.uid:
                bit = 0o100
            elif status.st_gid == self.gid:
                bit = 0o010
            else:
                bit = 0o001
            if not status.st_mode & bit:
                return False
        return True


def find_account() -> Account | None:
    """Return the account `nobody` if this process runs as root, otherwise None."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)
