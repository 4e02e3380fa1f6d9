"""How connections spread over the workers when clients come at once: `make bench-spread`.

Two workers of four threads, direct and behind the nginx of deploy/. wrk opens its connections at
once and reads one task for SECONDS, ROUNDS times each; between two of them, all connections are
closed. Another worker class: `make bench-spread ARGS="--worker-class gthread"`. Needs wrk, nginx.
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
ON_ONE = 0.9  # of the connections

# All of wrk's clients have one address; nginx would limit its rate and number of connections.
UNLIMITED = (
    "todo-api/http.conf",
    "geo $todo_uncounted {\n    default 0;",
    "geo $todo_uncounted {\n    default 1;",
)


class Round(NamedTuple):
    """What one worker had at most of the connections and of the CPU time, and what wrk counted."""

    connections: float
    cpu: float
    rate: float
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker-class", help="of gunicorn, instead of the API's own")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    told = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: apt-get install wrk")
    options = "--max-requests 0"  # the same workers from the first round to the last
    if told.worker_class:
        options += f" --worker-class {told.worker_class}"
    settings = {"WEB_CONCURRENCY": str(WORKERS), "WEB_THREADS": str(THREADS)}
    settings["GUNICORN_CMD_ARGS"] = options
    with postgresql() as server, serving(server.url(), **settings) as api:
        with Client(api.address) as client:
            body = {"title": "Buy oat milk"}
            created = client.request("POST", f"/api/{uuid.uuid4()}/tasks", body)
        assert created.status == HTTPStatus.CREATED, created
        path = created.headers["location"]
        run_wrk(api, api.address, path, CLIENTS[0])  # which warms up
        print("| | clients | connections | on one | CPU | requests/s | errors |")
        print("|---|---|---|---|---|---|---|")
        for clients in told.clients:
            direct, behind = [], []
            for _ in range(told.rounds):  # in turns: the machine's ups and downs are longer
                direct.append(run_wrk(api, api.address, path, clients))
                with nginx_proxy(api.address, UNLIMITED) as nginx:
                    behind.append(run_wrk(api, nginx.address, path, clients))
            show("direct", clients, direct)
            show("nginx", clients, behind)
    print("Of connections and CPU: the share of the worker with more, median (most).")
    print("On one: rounds in which one worker had nine tenths of the connections or more.")
    print("Requests/s: median (least).")


def run_wrk(api: Api, address: tuple[str, int], path: str, clients: int) -> Round:
    """Open so many connections at once, and look at the workers while they are used."""
    await_no_connections(api)
    workers = api.workers()
    before = [cpu_seconds(worker) for worker in workers]
    url = f"http://{address[0]}:{address[1]}{path}"
    process = subprocess.Popen(
        ["wrk", "-t1", f"-c{clients}", f"-d{SECONDS}s", url], stdout=subprocess.PIPE, text=True
    )
    time.sleep(SECONDS / 2)
    accepted = Counter(map_connections(api).values())
    output, _ = process.communicate(timeout=60)
    spent = [cpu_seconds(worker) - cpu for worker, cpu in zip(workers, before, strict=True)]
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    assert accepted, "No worker has accepted a connection."
    errors = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", output)
    return Round(
        connections=max(accepted.values()) / accepted.total(),
        cpu=max(spent) / sum(spent),
        rate=float(rate[1]),
        errors=sum(map(int, errors)),
    )


def show(name: str, clients: int, rounds: list[Round]) -> None:
    """Print a line of the table."""
    connections, cpu = [each.connections for each in rounds], [each.cpu for each in rounds]
    rates = [each.rate for each in rounds]
    on_one = sum(share >= ON_ONE for share in connections)
    figures = (
        f"{statistics.median(connections):.0%} ({max(connections):.0%})",
        f"{on_one} of {len(rounds)}",
        f"{statistics.median(cpu):.0%} ({max(cpu):.0%})",
        f"{statistics.median(rates):,.0f} ({min(rates):,.0f})",
        sum(each.errors for each in rounds),
    )
    print(f"| {name} | {clients} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
