"""What the service counts and measures, for Prometheus; docs/metrics.md tells what each one means.

No label holds what a client chose freely: neither a path, nor a user, nor a method of their own.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric
    from psycopg_pool import ConnectionPool

# The one that every version of Prometheus reads.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

# The same series whether or not there are several workers, for whom there are none of these.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Not the library's default one, which tells the version of Python.
REGISTRY = CollectorRegistry()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUESTS = Counter(
    "todo_http_requests_total",
    "Requests answered.",
    ["route", "method", "status"],
    registry=REGISTRY,
)
DURATIONS = Histogram(
    "todo_http_request_duration_seconds",
    "Time from a request to its answer.",
    ["route", "method", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=REGISTRY,
)

WORKERS = Gauge(
    "todo_workers",
    "Processes that serve.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)

# Each reason is counted from 0 on, so that the first one that happens is seen as an increase.
RETRIES = Counter(
    "todo_database_retries_total",
    "Statements run again.",
    ["reason"],
    registry=REGISTRY,
)
for reason in ("connection_lost", "rolled_back"):
    RETRIES.labels(reason)
SHEDS = Counter(
    "todo_database_sheds_total",
    "Requests refused at once, without asking the database.",
    ["reason"],
    registry=REGISTRY,
)
for reason in ("admission", "outage"):
    SHEDS.labels(reason)
REPLAYS = Counter(
    "todo_idempotency_replays_total",
    "Answers given again for an Idempotency-Key.",
    registry=REGISTRY,
)
OUTCOMES_UNKNOWN = Counter(
    "todo_database_outcomes_unknown_total",
    "Writes of which nobody can tell whether they were done.",
    registry=REGISTRY,
)

POOL_SIZE = Gauge(
    "todo_database_pool_connections",
    "Connections that the pools have.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_IDLE = Gauge(
    "todo_database_pool_idle_connections",
    "Connections of the pools that nobody uses.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_MOST = Gauge(
    "todo_database_pool_max_connections",
    "Connections that the pools may have.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
POOL_WAITING = Gauge(
    "todo_database_pool_waiting_requests",
    "Requests that wait for a connection.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
CONNECTIONS_OPENED = Counter(
    "todo_database_connections_opened_total",
    "Connections opened.",
    registry=REGISTRY,
)
CONNECTIONS_LOST = Counter(
    "todo_database_connections_lost_total",
    "Connections that broke, or were given up, while a request had them.",
    registry=REGISTRY,
)
CONNECT_FAILURES = Counter(
    "todo_database_connect_failures_total",
    "Attempts to connect that failed.",
    registry=REGISTRY,
)

POOL_INTERVAL = 2  # seconds


class KeySet:
    """An issuer's key set, as each worker has it. Made only where there is one to be fetched."""

    def __init__(self) -> None:
        # Of several workers, the one that is worst off.
        self.fetched_at = Gauge(
            "todo_jwks_fetched_timestamp_seconds",
            "When the key set was fetched last; 0 if never.",
            multiprocess_mode="livemin",
            registry=REGISTRY,
        )
        self.size = Gauge(
            "todo_jwks_keys",
            "Usable keys of the key set.",
            multiprocess_mode="livemin",
            registry=REGISTRY,
        )
        self.failures = Counter(
            "todo_jwks_fetch_failures_total",
            "Fetches of the key set that failed.",
            registry=REGISTRY,
        )


key_set = cache(KeySet)


def key_set_fetched(keys: int | None) -> None:
    """Tell that a fetch of the key set ended, with so many usable keys, or None if it failed."""
    if keys is None:
        key_set().failures.inc()
    else:
        key_set().fetched_at.set_to_current_time()
        key_set().size.set(keys)


def observe_request(route: str | None, method: str, status: int, seconds: float) -> None:
    """Count a request that was answered; no route is that of a path that there is not."""
    count, duration = series(route, method if method in METHODS else "other", status)
    count.inc()
    duration.observe(seconds)


@cache
def series(route: str | None, method: str, status: int) -> tuple[Counter, Histogram]:
    labels = (route or "unmatched", method, str(status))
    return REQUESTS.labels(*labels), DURATIONS.labels(*labels)


def watch_pool(pool: ConnectionPool[Any], interval: float = POOL_INTERVAL) -> None:
    """Keep the pool's numbers up to date by a thread, until the pool is closed.

    A scrape reaches one worker only, so each one has to write down its own, asked or not.
    """
    threading.Thread(
        target=keep_watching, args=(pool, interval), daemon=True, name="pool-metrics"
    ).start()


def keep_watching(pool: ConnectionPool[Any], interval: float) -> None:
    while not pool.closed:
        read_pool(pool)
        time.sleep(interval)


def read_pool(pool: ConnectionPool[Any]) -> None:
    stats = pool.get_stats()
    POOL_SIZE.set(stats["pool_size"])
    POOL_IDLE.set(stats["pool_available"])
    POOL_MOST.set(stats["pool_max"])
    POOL_WAITING.set(stats["requests_waiting"])


def exposition() -> bytes:
    """All of it in Prometheus' text format: of every worker, where there are several."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(AllWorkers(folder))
    return generate_latest(registry)


class AllWorkers(Collector):
    """What the workers have written to the folder, added up."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        added: Iterable[Metric] = MultiProcessCollector.merge(self._files())  # type: ignore[no-untyped-call]
        return added

    def _files(self) -> Iterator[str]:
        for entry in os.scandir(self._folder):
            # Of a worker that has just died; or of one that starts, and there is nothing in it yet.
            with suppress(FileNotFoundError):
                if entry.stat().st_size:
                    yield entry.path
