"""The file postmaster.pid, in which a server writes its process id, socket and state."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SOCKET_PREFIX = "todo-api-"


class Postmaster(NamedTuple):
    """A server that starts, runs, or was killed."""

    pid: int
    socket: Path
    state: str


def read_postmaster(data: Path) -> Postmaster | None:
    """Return the server of this data folder, or None if its file is missing or incomplete."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid, _, _, _, socket, _, _, state = lines  # PostgreSQL's pidfile.h
    except (FileNotFoundError, ValueError):
        return None
    return Postmaster(int(pid), Path(socket), state.strip())


def remove_remains(data: Path) -> None:
    """Remove the socket, and if necessary the file, of a server that was killed."""
    postmaster = read_postmaster(data)
    if postmaster is None:
        return
    if postmaster.socket.name.startswith(SOCKET_PREFIX):
        shutil.rmtree(postmaster.socket, ignore_errors=True)
    # If no process reaps orphans, as in a container without an init, the killed server stays a
    # zombie, and PostgreSQL regards its process id as that of a running server.
    with suppress(FileNotFoundError):
        state = Path(f"/proc/{postmaster.pid}/stat").read_text().rpartition(") ")[2][0]
        if state == "Z":
            (data / "postmaster.pid").unlink()
