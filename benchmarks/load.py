"""A load by wrk, and its figures. A measurement with any error is invalid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data import COMPLETED_EACH, FIRST_REVISION, MIX, SENT_MEMBERS, WRITES

from todo_api.web.conditional import etag

if TYPE_CHECKING:
    from data import Data, Size

SCRIPT = Path(__file__).with_suffix(".lua")
CONNECTIONS = 16
LIMIT = 50  # the `limit` of a list request

# An operation besides those in WRITES is "GET" with what follows the user's id in the path, such as
# "GET /tasks?limit=50".
GET = "GET"


class InvalidMeasurementError(Exception):
    """The measurement does not count; the message has the reason."""


@dataclass(frozen=True)
class Measurement:
    """The figures of one measurement; the latencies are in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p95: float
    p99: float
    maximum: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require_wrk() -> None:
    """Install wrk if apt-get and root are available. Exit with a message if it is missing."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends wrk"
        subprocess.run(["sh", "-c", install], stdout=subprocess.DEVNULL, check=False)
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk, or brew install wrk")


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
) -> Measurement:
    """Send requests of the operation for `seconds`, on keep-alive connections.

    Raises InvalidMeasurementError if a response is an error, if a connection is lost, or if the
    number of changes in the database differs from the number of write requests. If `writes` is
    False, the server has no database, and the changes are not compared.
    """
    changes_before = data.changes()
    name, _, target = operation.partition(" ")
    environ = {
        "OPERATION": name,
        "TOKENS": str(tokens or ""),
        "USERS": str(size.users),
        "TASKS_PER_USER": str(size.tasks_per_user),
        "LIMIT": str(LIMIT),
        "BODY": json.dumps(SENT_MEMBERS),
        "COMPLETED_EACH": str(COMPLETED_EACH),
        "MIX": " ".join(f"{name}={share}" for name, share in MIX.items()),
        "TARGET": target,
        "FIRST_REVISION": str(FIRST_REVISION),
        "ETAG": etag(12345).replace("12345", "%d"),
    }
    process = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", SCRIPT, url],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    _, separator, result = process.stdout.partition("RESULT ")
    if not separator:
        raise InvalidMeasurementError(f"{operation}: wrk failed: {process.stdout}{process.stderr}")
    figures = json.loads(result)
    errors, lost = figures.pop("errors"), figures.pop("lost")
    if errors or lost or not figures["requests"]:
        raise InvalidMeasurementError(
            f"{operation}: {figures['requests']} requests, {errors} responses with a wrong status, "
            f"{lost} connections lost or timed out"
        )
    if writes:
        changes = data.changes() - changes_before
        check_changes(operation, figures["requests"], changes, connections)
    return Measurement(**figures)


def check_changes(operation: str, requests: int, changes: int, connections: int) -> None:
    """Raise InvalidMeasurementError unless the requests made the expected number of changes."""
    # At the end, one request of each connection may or may not be executed, and a mix can stop
    # in the middle of its series of 100 requests.
    share = WRITES.get(operation, 0) / 100
    tolerance = connections + (100 if operation == "mix" else 0) if share else 0
    if abs(changes - requests * share) > tolerance:
        raise InvalidMeasurementError(
            f"{operation}: {requests} requests made {changes} changes in the database"
        )
