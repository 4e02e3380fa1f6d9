"""Where the time of a request goes: `make bench-profile`.

One worker with one thread serves each operation under load, and its stack is looked at a thousand
times a second. A sample counts for the innermost frame that is some part's; the time between is
that of the clock, since the thread is never without a request.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from compare import SIZE, TITLES, machine
from contenders import OURS, serving
from data import WRITES, migrated, write_tokens
from document import replace_section, table
from load import measure, require_wrk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data import Data

# The first whose file and function are in a frame; what no part has belongs to who called it.
PARTS: Mapping[str, Sequence[str]] = {
    "waiting for a request": ("todo_api/server/worker.py:Worker._serve",),
    "sending the answer": ("todo_api/server/responses.py:Response.send_headers",),
    "gunicorn and its worker": ("/gunicorn/", "todo_api/server/"),
    "PostgreSQL, and libpq": (
        "todo_api/db/connection.py:Connection.transact",
        "todo_api/db/connection.py:Connection._await",
    ),
    "conversion of parameters and rows": ("todo_api/db/connection.py", "/psycopg/"),
    "pool and admission limiter": ("todo_api/db/", "/psycopg_pool/"),
    "the log line": ("todo_api/logs.py", "todo_api/web/access_log.py", "/structlog/"),
    "metrics": ("todo_api/metrics.py", "/prometheus_client/"),
    "the token": ("todo_api/auth/",),
    "validation": (
        *("/marshmallow/", "/json/", "todo_api/web/strict_json.py"),
        *("todo_api/web/body.py", "todo_api/web/fields.py", "todo_api/web/validation.py"),
    ),
    "Flask and werkzeug": ("/flask/", "/werkzeug/", "/blinker/"),
    "checks, views, header fields": ("todo_api/", "/flask_smorest/"),
}
OTHER = "other"
PER_SECOND = 1_000_000  # microseconds

Shares = dict[str, float]


def part_of(stack: Sequence[Sequence[str]]) -> str:
    for file, function in stack:
        for part, places in PARTS.items():
            if any(place in f"{file}:{function}" for place in places):
                return part
    return OTHER


def profile(operation: str, data: Data, folder: Path, seconds: int) -> Shares:
    """Microseconds of a request in each part, by the clock."""
    samples = folder / f"{operation}.json"
    # Sampling hears of a signal in its main thread, so that is the one that serves.
    environ = {
        "SAMPLES": str(samples),
        "PYTHONPATH": str(Path(__file__).parent),
        "GUNICORN_CMD_ARGS": "-k sampling.SampledWorker",
    }
    ours = replace(OURS, environ={**OURS.environ, **environ})
    data.reset(SIZE)
    with serving(ours, data.url, folder / "log", tokens=True, workers=1, threads=1) as server:
        (worker,) = (each for each in server.processes() if each != server.group)
        load = partial(measure, server.url, operation, data, SIZE, tokens=folder / "tokens")
        load(seconds=2)
        data.reset(SIZE)
        os.kill(worker, signal.SIGUSR1)
        measured = load(seconds=seconds)
        os.kill(worker, signal.SIGUSR1)
    taken = PER_SECOND * measured.seconds / measured.requests
    found: Shares = dict.fromkeys([*PARTS, OTHER], 0.0)
    for stack, times in json.loads(samples.read_text()):
        found[part_of(stack)] += times
    return {part: taken * times / sum(found.values()) for part, times in found.items()}


def shown(found: Mapping[str, Shares]) -> str:
    rows = [
        [part, *(f"{shares[part]:.0f}" for shares in found.values())]
        for part in [*PARTS, OTHER]
        if any(shares[part] >= 1 for shares in found.values())
    ]
    rows.append(["total", *(f"{sum(shares.values()):.0f}" for shares in found.values())])
    return table(["µs of a request", *(TITLES[operation] for operation in found)], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=8, help="of each operation")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    require_wrk()
    with tempfile.TemporaryDirectory() as name, migrated() as data:
        folder = Path(name)
        write_tokens(folder / "tokens", SIZE.users)
        found = {
            operation: profile(operation, data, folder, given.seconds)
            for operation in WRITES
            if operation != "mix"
        }
        text = (
            f"{shown(found)}\n\nOne worker, one thread, {given.seconds} s each. {machine(data)}.\n"
        )
    print(text)
    if given.write:
        replace_section("make bench-profile", text)


if __name__ == "__main__":
    main()
