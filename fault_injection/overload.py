"""Three times as many requests come as can be answered, behind the nginx of deploy/.

The database is 20 ms away, so that a request has its price on every machine. What can be answered
still is, what cannot is refused at once, and when the flood is over, so are its effects.
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

# How many requests nginx lets in at a time.
GATE = int(re.findall(r"max_conns=(\d+)", (NGINX_FOLDER / "todo-api/upstream.conf").read_text())[0])
DELAY = 0.02  # seconds, of each request to the database
CLIENTS = 50  # fewer than the gate lets in: they find out what can be answered
FACTOR = 3
GOODPUT = 0.8  # of the peak
RECOVERY = 5.0  # seconds
IN_A_ROW = 20  # requests that are answered as if nothing had been


class Limits(NamedTuple):
    """How long the load lasts, and how soon 99 of 100 refusals must come, in seconds.

    A short run is part of the tests, on machines that do much else at the same time.
    """

    measuring: float
    flood: float
    refusal: float
    goodput: float


FULL = Limits(measuring=15, flood=60, refusal=0.25, goodput=GOODPUT)
SHORT = Limits(measuring=3, flood=5, refusal=2.0, goodput=GOODPUT / 2)


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
            load(nginx.address, task, 2, clients=CLIENTS)  # every connection is opened
            peak = load(nginx.address, task, limits.measuring, clients=CLIENTS)
            flood = load(nginx.address, task, limits.flood, rate=FACTOR * peak.goodput)
            recovery = recovered(nginx.address, task, percentile(99, peak.of(200)))
    refused, late = flood.of(503, own=True), flood.of(503)
    # What was let in waits in gunicorn's queue first, even if the application refuses it then.
    queue = GATE / peak.goodput
    print_figures(
        peak_per_s=f"{peak.goodput:.0f}",
        offered_per_s=f"{len(flood.answers) / flood.duration:.0f}",
        answered_per_s=f"{flood.goodput:.0f}",
        goodput=f"{flood.goodput / peak.goodput:.0%}",
        answered_p99=milliseconds(99, flood.of(200)),
        refused_by_nginx=len(refused),
        refused_by_nginx_p50=milliseconds(50, refused),
        refused_by_nginx_p99=milliseconds(99, refused),
        refused_by_the_application=len(late),
        refused_by_the_application_p99=milliseconds(99, late),
        recovered_after=f"{recovery:.2f} s",
    )
    # On a machine that is busy with other things, a few are refused before there is a flood.
    assert set(peak.statuses) <= {200, 503}, peak.statuses
    assert set(flood.statuses) == {200, 503}, flood.statuses
    assert flood.goodput >= limits.goodput * peak.goodput, "Goodput fell."
    assert percentile(99, refused) <= limits.refusal, "nginx refused late."
    assert percentile(99, late) <= queue + 2 * limits.refusal, "The application refused late."
    assert recovery <= RECOVERY, "It did not recover."


def milliseconds(part: int, seconds: list[float]) -> str:
    return f"{1000 * percentile(part, seconds):.0f} ms"


def recovered(address: tuple[str, int], task: str, usual: float) -> float:
    """Seconds until so many requests in a row were answered, each in the usual time."""
    row = 0

    def well() -> bool:
        nonlocal row
        begun = time.monotonic()
        status = client.request("GET", task).status
        row = row + 1 if status == 200 and time.monotonic() - begun <= usual else 0
        return row == IN_A_ROW

    with Client(address) as client:
        return wait_until(well, "requests are answered as before", 30)
