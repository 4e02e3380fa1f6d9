"""Measure the distribution of connections to workers: `make bench-spread` (needs wrk and nginx).

wrk opens all its connections at once and reads one task for SECONDS, directly and through the nginx
of deploy/, ROUNDS times each. Between two rounds, all connections are closed. gunicorn has two
workers of four threads. `make bench-spread ARGS="--worker-class gthread"` measures another worker
class.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from fault_injection.clients import Client
from fault_injection.nginx import nginx_proxy
from fault_injection.servers import postgresql, serving
from fault_injection.worker_state import await_no_connections, cpu_seconds, map_connections

if TYPE_CHECKING:
    from fault_injection.servers import Api

WORKERS, THREADS = 2, 4
CLIENTS = (16, 100)
ROUNDS, SECONDS = 30, 2
# A round counts as "on one worker" if that worker has this share of the connections or more.
SHARE_ON_ONE_WORKER = 0.9

# wrk has a single address. This change switches off nginx's limits for each address.
UNLIMITED = (
    "todo-api/http.conf",
    "geo $todo_uncounted {\n    default 0;",
    "geo $todo_uncounted {\n    default 1;",
)


class Round(NamedTuple):
    """The largest share of a worker in connections and CPU time, and the figures of wrk."""

    connections: float
    cpu: float
    rate: float
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker-class", help="a worker class of gunicorn instead of the API's")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk")
    options = "--max-requests 0"  # the same workers from the first round to the last
    if arguments.worker_class:
        options += f" --worker-class {arguments.worker_class}"
    settings = {"WEB_CONCURRENCY": str(WORKERS), "WEB_THREADS": str(THREADS)}
    settings["GUNICORN_CMD_ARGS"] = options
    with postgresql() as server, serving(server.url(), **settings) as api:
        with Client(api.address) as client:
            body = {"title": "Buy oat milk"}
            created = client.request("POST", f"/api/{uuid.uuid4()}/tasks", body)
        assert created.status == HTTPStatus.CREATED, created
        path = created.headers["location"]
        run_wrk(api, api.address, path, CLIENTS[0])  # the warm-up
        print("| | clients | connections | on one worker | CPU | requests/s | errors |")
        print("|---|---|---|---|---|---|---|")
        for clients in arguments.clients:
            direct, behind = [], []
            # Alternately, because noise of the machine lasts longer than one round.
            for _ in range(arguments.rounds):
                direct.append(run_wrk(api, api.address, path, clients))
                with nginx_proxy(api.address, UNLIMITED) as nginx:
                    behind.append(run_wrk(api, nginx.address, path, clients))
            print_row("direct", clients, direct)
            print_row("nginx", clients, behind)
    print("Connections and CPU: the larger of the two workers' shares, median (maximum).")
    print("On one worker: rounds in which one worker had 90 % of the connections or more.")
    print("Requests/s: median (minimum).")


def run_wrk(api: Api, address: tuple[str, int], path: str, clients: int) -> Round:
    """Run wrk with this number of connections, and measure the workers meanwhile."""
    await_no_connections(api)
    workers = api.workers()
    cpu_before = [cpu_seconds(worker) for worker in workers]
    url = f"http://{address[0]}:{address[1]}{path}"
    process = subprocess.Popen(
        ["wrk", "-t1", f"-c{clients}", f"-d{SECONDS}s", url], stdout=subprocess.PIPE, text=True
    )
    time.sleep(SECONDS / 2)
    accepted = Counter(map_connections(api).values())
    output, _ = process.communicate(timeout=60)
    cpu = [
        cpu_seconds(worker) - seconds for worker, seconds in zip(workers, cpu_before, strict=True)
    ]
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    assert accepted, "No worker has accepted a connection."
    errors = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", output)
    return Round(
        connections=max(accepted.values()) / accepted.total(),
        cpu=max(cpu) / sum(cpu),
        rate=float(rate[1]),
        errors=sum(map(int, errors)),
    )


def print_row(name: str, clients: int, rounds: list[Round]) -> None:
    """Print a row of the table."""
    connections, cpu = [each.connections for each in rounds], [each.cpu for each in rounds]
    rates = [each.rate for each in rounds]
    on_one_worker = sum(share >= SHARE_ON_ONE_WORKER for share in connections)
    figures = (
        f"{statistics.median(connections):.0%} ({max(connections):.0%})",
        f"{on_one_worker} of {len(rounds)}",
        f"{statistics.median(cpu):.0%} ({max(cpu):.0%})",
        f"{statistics.median(rates):,.0f} ({min(rates):,.0f})",
        sum(each.errors for each in rounds),
    )
    print(f"| {name} | {clients} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
