"""Metrics for Prometheus; docs/metrics.md describes each of them.

No label holds text that a client chose, such as a path, a user or an unknown method.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric
    from psycopg_pool import ConnectionPool

# The format that every version of Prometheus reads.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)  # seconds
POOL_INTERVAL = 2  # seconds


class Metrics:
    """The metrics of one application, in a registry of their own.

    In a server with several processes, each process with a Metrics object writes its own files, and
    a scrape returns the sums. So each worker of gunicorn has one Metrics object, and the master has
    none.
    """

    def __init__(self) -> None:
        # Not the library's default registry, because that one exposes the version of Python.
        self.registry = CollectorRegistry()
        labels = ["route", "method", "status"]
        self.requests = self._counter("todo_http_requests_total", "Responses sent.", labels)
        self.durations = Histogram(
            "todo_http_request_duration_seconds",
            "Seconds from the receipt of a request to its response.",
            labels,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._series: dict[tuple[str | None, str, int], tuple[Counter, Histogram]] = {}
        self.workers = self._gauge("todo_workers", "Worker processes that are running.")

        self.retries = self._counter(
            "todo_database_retries_total", "Statements that were retried.", ["reason"]
        )
        self.refused_requests = self._counter(
            "todo_database_refused_requests_total",
            "Requests that were refused with 503 without using the database.",
            ["reason"],
        )
        # Each reason begins at 0, so that Prometheus sees the first event as an increase.
        for counter, reasons in (
            (self.retries, ("connection_lost", "rolled_back")),
            (self.refused_requests, ("admission", "outage")),
        ):
            for reason in reasons:
                counter.labels(reason)
        self.replays = self._counter(
            "todo_idempotency_replays_total",
            "Stored responses that were sent again for an Idempotency-Key.",
        )
        self.unknown_outcomes = self._counter(
            "todo_database_unknown_outcomes_total",
            "Writes whose connection broke, so that their outcome is unknown.",
        )

        self.pool_size = self._gauge("todo_database_pool_connections", "Open database connections.")
        self.pool_idle = self._gauge(
            "todo_database_pool_idle_connections", "Open database connections that no request uses."
        )
        self.pool_max = self._gauge(
            "todo_database_pool_max_connections", "Maximum number of database connections."
        )
        self.pool_waiting = self._gauge(
            "todo_database_pool_waiting_requests", "Requests that wait for a database connection."
        )
        self.connections_opened = self._counter(
            "todo_database_connections_opened_total", "Database connections that were opened."
        )
        self.connections_lost = self._counter(
            "todo_database_connections_lost_total",
            "Database connections that broke or were closed while a request used them.",
        )
        self.connect_failures = self._counter(
            "todo_database_connect_failures_total",
            "Attempts to connect to the database that failed.",
        )

    def _counter(self, name: str, documentation: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, documentation, labels, registry=self.registry)

    def _gauge(self, name: str, documentation: str, mode: Any = "livesum") -> Gauge:
        return Gauge(name, documentation, multiprocess_mode=mode, registry=self.registry)

    def observe_request(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request that got a response. `route` is None for unmatched paths."""
        key = (route, method if method in METHODS else "other", status)
        series = self._series.get(key)
        if series is None:
            labels = (route or "unmatched", key[1], str(status))
            series = (self.requests.labels(*labels), self.durations.labels(*labels))
            self._series[key] = series
        count, duration = series
        count.inc()
        duration.observe(seconds)

    def watch_pool(self, pool: ConnectionPool[Any], interval: float = POOL_INTERVAL) -> None:
        """Keep the pool's gauges up to date in a thread, until the pool is closed.

        A scrape reaches only one worker, so each worker writes its own values all the time.
        """

        def keep_watching() -> None:
            while not pool.closed:
                self.read_pool(pool)
                time.sleep(interval)

        threading.Thread(target=keep_watching, daemon=True, name="pool-metrics").start()

    def read_pool(self, pool: ConnectionPool[Any]) -> None:
        """Set the pool's gauges."""
        stats = pool.get_stats()
        self.pool_size.set(stats["pool_size"])
        self.pool_idle.set(stats["pool_available"])
        self.pool_max.set(stats["pool_max"])
        self.pool_waiting.set(stats["requests_waiting"])

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format: of all workers if there are several."""
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        return generate_latest(OneProcess(self.registry) if folder is None else AllWorkers(folder))


class KeySetMetrics:
    """The metrics of an issuer's key set, for a server with JWT_JWKS_URL."""

    def __init__(self, metrics: Metrics) -> None:
        # The lowest value of all workers, because it belongs to the worker with the oldest keys.
        self.fetched_at = Gauge(
            "todo_jwks_fetched_timestamp_seconds",
            "Unix time of the last successful fetch of the key set; 0 before the first.",
            multiprocess_mode="livemin",
            registry=metrics.registry,
        )
        self.size = Gauge(
            "todo_jwks_keys",
            "Keys of the key set that can verify tokens.",
            multiprocess_mode="livemin",
            registry=metrics.registry,
        )
        self.failures = Counter(
            "todo_jwks_fetch_failures_total",
            "Attempts to fetch the key set that failed.",
            registry=metrics.registry,
        )

    def report_fetch(self, keys: int | None) -> None:
        """Record that a fetch ended with this number of usable keys, or None if it failed."""
        if keys is None:
            self.failures.inc()
        else:
            self.fetched_at.set_to_current_time()
            self.size.set(keys)


class OneProcess(Collector):
    """The metrics of a server with a single process, in the same series as with several processes.

    With a single process, the library adds a `_created` series to each counter and histogram. This
    class removes these series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric


class AllWorkers(Collector):
    """The sums of the metrics that the workers have written to the folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        metrics: Iterable[Metric] = MultiProcessCollector.merge(self._files())  # type: ignore[no-untyped-call]
        return metrics

    def _files(self) -> Iterator[str]:
        for entry in os.scandir(self._folder):
            # A file may disappear when a worker ends, and is empty while a worker starts.
            with suppress(FileNotFoundError):
                if entry.stat().st_size:
                    yield entry.path
