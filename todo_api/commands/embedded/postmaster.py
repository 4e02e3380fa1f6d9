"""The file postmaster.pid, in which PostgreSQL writes its process id, socket folder and state."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SOCKET_PREFIX = "todo-api-"


class Postmaster(NamedTuple):
    """The content of postmaster.pid: of a server that starts, runs, or was killed."""

    pid: int
    socket_folder: Path
    state: str


def read_postmaster(data: Path) -> Postmaster | None:
    """Return the server of this data folder, or None if its file is missing or incomplete."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid, _, _, _, socket_folder, _, _, state = lines  # PostgreSQL's pidfile.h
    except (FileNotFoundError, ValueError):
        return None
    return Postmaster(int(pid), Path(socket_folder), state.strip())


def remove_remains(data: Path) -> None:
    """Remove the socket folder of a server that was killed, and postmaster.pid if necessary."""
    postmaster = read_postmaster(data)
    if postmaster is None:
        return
    if postmaster.socket_folder.name.startswith(SOCKET_PREFIX):
        shutil.rmtree(postmaster.socket_folder, ignore_errors=True)
    # Where no process reaps orphans, such as a container without an init, the killed server stays a
    # zombie. PostgreSQL would take the zombie for a running server.
    with suppress(FileNotFoundError):
        state = Path(f"/proc/{postmaster.pid}/stat").read_text().rpartition(") ")[2][0]
        if state == "Z":
            (data / "postmaster.pid").unlink()
