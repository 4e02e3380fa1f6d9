"""Measure the time of each operation by component: `make bench-profile`.

One worker with one thread serves each operation under load. It samples its stack 1,000 times per
second. A sample counts for the component of its innermost frame that belongs to a component. The
times are elapsed times, because the thread always has a request.
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
from data import WRITES, migrated, write_tokens
from load import measure, require_wrk
from performance_page import replace_section, table
from systems import THIS_API, serving

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from data import Data

# The components, with texts to find in FILE:FUNCTION of a frame. The first match counts. A frame
# without a match counts for the component of its caller.
COMPONENTS: Mapping[str, Sequence[str]] = {
    "waiting for a request": ("todo_api/server/worker.py:Worker._serve",),
    "sending the response": ("todo_api/server/responses.py:Response.send_headers",),
    "gunicorn and its worker": ("/gunicorn/", "todo_api/server/"),
    "PostgreSQL and libpq": (
        "todo_api/db/connection.py:Connection.transact",
        "todo_api/db/connection.py:Connection._await",
    ),
    "conversion of values and rows": ("todo_api/db/connection.py", "/psycopg/"),
    "pool and admission limiter": ("todo_api/db/", "/psycopg_pool/"),
    "the log line": ("todo_api/logs.py", "todo_api/web/access_log.py", "/structlog/"),
    "metrics": ("todo_api/metrics.py", "/prometheus_client/"),
    "the token": ("todo_api/auth/",),
    "validation": (
        *("/marshmallow/", "/json/", "todo_api/web/strict_json.py"),
        *("todo_api/web/body.py", "todo_api/web/fields.py", "todo_api/web/validation.py"),
    ),
    "Flask and werkzeug": ("/flask/", "/werkzeug/", "/blinker/"),
    "checks, views, headers": ("todo_api/", "/flask_smorest/"),
}
OTHER = "other"
MICROSECONDS_PER_SECOND = 1_000_000

Times = dict[str, float]


def find_component(stack: Sequence[Sequence[str]]) -> str:
    for file, function in stack:
        for component, texts in COMPONENTS.items():
            if any(text in f"{file}:{function}" for text in texts):
                return component
    return OTHER


def profile(operation: str, data: Data, folder: Path, seconds: int) -> Times:
    """Return the microseconds of a request in each component."""
    samples = folder / f"{operation}.json"
    # Only the main thread receives signals, so the main thread serves the requests.
    environ = {
        "SAMPLES": str(samples),
        "PYTHONPATH": str(Path(__file__).parent),
        "GUNICORN_CMD_ARGS": "-k sampling_worker.SampledWorker",
    }
    system = replace(THIS_API, environ={**THIS_API.environ, **environ})
    data.reset(SIZE)
    with serving(system, data.url, folder / "log", tokens=True, workers=1, threads=1) as server:
        (worker,) = (process for process in server.processes() if process != server.group)
        load = partial(measure, server.url, operation, data, SIZE, tokens=folder / "tokens")
        load(seconds=2)
        data.reset(SIZE)
        os.kill(worker, signal.SIGUSR1)
        measurement = load(seconds=seconds)
        os.kill(worker, signal.SIGUSR1)
    request_time = MICROSECONDS_PER_SECOND * measurement.seconds / measurement.requests
    counts: Times = dict.fromkeys([*COMPONENTS, OTHER], 0.0)
    for stack, count in json.loads(samples.read_text()):
        counts[find_component(stack)] += count
    total = sum(counts.values())
    return {component: request_time * count / total for component, count in counts.items()}


def format_table(profiles: Mapping[str, Times]) -> str:
    rows = [
        [component, *(f"{times[component]:.0f}" for times in profiles.values())]
        for component in [*COMPONENTS, OTHER]
        if any(times[component] >= 1 for times in profiles.values())
    ]
    rows.append(["total", *(f"{sum(times.values()):.0f}" for times in profiles.values())])
    return table(["µs of a request", *(TITLES[operation] for operation in profiles)], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=8, help="seconds of each operation")
    parser.add_argument("--write", action="store_true", help="write into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    require_wrk()
    with tempfile.TemporaryDirectory() as name, migrated() as data:
        folder = Path(name)
        write_tokens(folder / "tokens", SIZE.users)
        profiles = {
            operation: profile(operation, data, folder, options.seconds)
            for operation in WRITES
            if operation != "mix"
        }
        setup = (
            f"One worker with one thread served each operation for {options.seconds} s. "
            f"{machine(data)}."
        )
        text = f"{format_table(profiles)}\n\n{setup}\n"
    print(text)
    if options.write:
        replace_section("make bench-profile", text)


if __name__ == "__main__":
    main()
