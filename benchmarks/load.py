"""wrk, and what it measured: a cell in which anything went wrong is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data import MIX, WRITES

from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from data import Data, Size

SCRIPT = Path(__file__).with_suffix(".lua")
CONNECTIONS = 16
LIMIT = 50  # tasks that a list asks for


class VoidError(Exception):
    """The cell cannot be counted; the message says why."""


@dataclass(frozen=True)
class Measured:
    """One cell; the latencies are in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float
    most: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require_wrk() -> None:
    """Install wrk where that can be done, or end with a message that says what is missing."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends wrk"
        subprocess.run(["sh", "-c", install], stdout=subprocess.DEVNULL, check=False)
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed, which makes the load: apt-get install wrk, or brew install wrk")


def measure(
    url: str,
    operation: str,
    data: Data,
    size: Size,
    *,
    tokens: Path | None,
    seconds: float,
    connections: int = CONNECTIONS,
    writes: bool = True,
) -> Measured:
    """Ask for the operation for so long, over keep-alive connections.

    Raises VoidError if an answer was an error, a connection broke, or the database has not as many
    changes more as there were requests for one (unless `writes` says that there is no database).
    """
    before = data.changes()
    environ = {
        "OPERATION": operation,
        "TOKENS": str(tokens or ""),
        "USERS": str(size.users),
        "TASKS_PER_USER": str(size.tasks_per_user),
        "LIMIT": str(LIMIT),
        "MIX": " ".join(f"{name}={share}" for name, share in MIX.items()),
        "ETAG": etag(12345).replace("12345", "%d"),
    }
    ended = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", SCRIPT, url],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    _, found, result = ended.stdout.partition("RESULT ")
    if not found:
        raise VoidError(f"{operation}: wrk failed: {ended.stdout}{ended.stderr}")
    counted = json.loads(result)
    refused, broken = counted.pop("refused"), counted.pop("broken")
    if refused or broken or not counted["requests"]:
        raise VoidError(
            f"{operation}: of {counted['requests']} requests, {refused} were answered with 400 or "
            f"above; {broken} times a connection broke or timed out"
        )
    if writes:
        expect_changes(operation, counted["requests"], data.changes() - before, connections)
    return Measured(**counted)


def expect_changes(operation: str, requests: int, changes: int, connections: int) -> None:
    # What was under way at the end has been done, or not; a mix ends within its hundred.
    share = WRITES[operation] / 100
    slack = connections + (100 if operation == "mix" else 0) if share else 0
    if abs(changes - requests * share) > slack:
        raise VoidError(f"{operation}: {requests} requests made {changes} changes in the database")
