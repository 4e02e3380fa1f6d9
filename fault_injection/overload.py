"""Three times as many requests as can be served are sent to the nginx of deploy/.

The database has a delay of 20 ms, so that the rate is limited on every machine. As many requests as
possible are served, the others are refused at once. After the overload, requests succeed within the
usual time again.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import NamedTuple

from fault_injection import print_figures
from fault_injection.clients import Client
from fault_injection.load import load, percentile
from fault_injection.nginx import NGINX_FOLDER, nginx_proxy
from fault_injection.proxy import Proxy
from fault_injection.servers import DATABASE, postgresql, serving, wait_until

# The number of requests that nginx passes on at the same time.
UPSTREAM = (NGINX_FOLDER / "todo-api/upstream.conf").read_text()
MAX_CONNECTIONS = int(re.findall(r"max_conns=(\d+)", UPSTREAM)[0])
DELAY = 0.02  # seconds, of each message to the database
CLIENTS = 50  # fewer than MAX_CONNECTIONS, to measure the maximum rate without refusals
OVERLOAD_FACTOR = 3
MIN_GOODPUT = 0.8  # of the maximum rate
MAX_RECOVERY = 5.0  # seconds
REQUESTS_IN_A_ROW = 20  # that succeed within the usual time after the overload


class Limits(NamedTuple):
    """The duration of both loads and the maximum time of 99 of 100 refusals, in seconds.

    A short run has longer limits, because the tests share their machine with other work.
    """

    peak_seconds: float
    overload_seconds: float
    refusal: float
    goodput: float


FULL = Limits(peak_seconds=15, overload_seconds=60, refusal=0.25, goodput=MIN_GOODPUT)
SHORT = Limits(peak_seconds=3, overload_seconds=5, refusal=2.0, goodput=MIN_GOODPUT / 2)


def run(*, short: bool) -> None:
    limits = SHORT if short else FULL
    path = f"/api/{uuid.uuid4()}/tasks"
    with postgresql() as server, Proxy(server.address) as proxy:
        url = f"postgresql://postgres@{proxy.address[0]}:{proxy.address[1]}/{DATABASE}"
        with serving(url, AUTH_MODE="none") as api, nginx_proxy(api.address) as nginx:
            with Client(nginx.address) as client:
                created = client.request("POST", path, {"title": "Oats"})
            assert created.status == 201, created
            proxy.delay = DELAY
            task = created.headers["location"]
            load(nginx.address, task, 2, clients=CLIENTS)  # opens all connections
            peak = load(nginx.address, task, limits.peak_seconds, clients=CLIENTS)
            rate = OVERLOAD_FACTOR * peak.goodput
            overload = load(nginx.address, task, limits.overload_seconds, rate=rate)
            usual_seconds = percentile(99, peak.seconds_of(200))
            recovery = measure_recovery(nginx.address, task, usual_seconds)
    refused_by_nginx = overload.seconds_of(503, is_from_nginx=True)
    refused_by_application = overload.seconds_of(503)
    # A request that nginx passes on waits in gunicorn's queue before the application refuses it.
    queue_seconds = MAX_CONNECTIONS / peak.goodput
    print_figures(
        maximum_rate_per_s=f"{peak.goodput:.0f}",
        requests_sent_per_s=f"{len(overload.results) / overload.duration:.0f}",
        requests_served_per_s=f"{overload.goodput:.0f}",
        goodput=f"{overload.goodput / peak.goodput:.0%}",
        served_p99=milliseconds(99, overload.seconds_of(200)),
        refused_by_nginx=len(refused_by_nginx),
        refused_by_nginx_p50=milliseconds(50, refused_by_nginx),
        refused_by_nginx_p99=milliseconds(99, refused_by_nginx),
        refused_by_the_application=len(refused_by_application),
        refused_by_the_application_p99=milliseconds(99, refused_by_application),
        recovery=f"{recovery:.2f} s",
    )
    # On a machine with other work, some requests are refused before the overload, too.
    assert set(peak.statuses) <= {200, 503}, peak.statuses
    assert set(overload.statuses) == {200, 503}, overload.statuses
    assert refused_by_nginx, "No refusal has the text that fault_injection.load expects of nginx."
    assert overload.goodput >= limits.goodput * peak.goodput, "Too few requests were served."
    assert percentile(99, refused_by_nginx) <= limits.refusal, "nginx refused late."
    assert percentile(99, refused_by_application) <= queue_seconds + 2 * limits.refusal, (
        "The application refused late."
    )
    assert recovery <= MAX_RECOVERY, f"The recovery took {recovery:.2f} s."


def milliseconds(percent: int, seconds: list[float]) -> str:
    return f"{1000 * percentile(percent, seconds):.0f} ms"


def measure_recovery(address: tuple[str, int], task: str, usual_seconds: float) -> float:
    """Return the seconds until REQUESTS_IN_A_ROW reads succeed, each within the usual time."""
    in_a_row = 0

    def has_recovered() -> bool:
        nonlocal in_a_row
        started = time.monotonic()
        status = client.request("GET", task).status
        is_usual = status == 200 and time.monotonic() - started <= usual_seconds
        in_a_row = in_a_row + 1 if is_usual else 0
        return in_a_row == REQUESTS_IN_A_ROW

    with Client(address) as client:
        return wait_until(has_recovered, "requests succeed within the usual time", 30)
