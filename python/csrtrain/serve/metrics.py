"""Counts for Prometheus, of all worker processes of a server together."""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # folder through which processes share their counts
SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PATHS = ("/search", "/search/binary", "/index", "/health", "/ready", "/metrics")


class Metrics:
    """The counts of one process."""

    def __init__(self) -> None:
        disable_created_metrics()  # a time beside each count, which nobody reads
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "csrkern_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "csrkern_request_seconds",
            "From the head of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._queries = Counter(
            "csrkern_queries", "Queries searched for.", ["kind"], registry=registry
        )
        self._search_seconds = Histogram(
            "csrkern_search_seconds",
            "Encoding and searching the queries of a request.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self._loads = Counter(
            "csrkern_loads",
            "Times that the index was loaded, or not.",
            ["result"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "csrkern_requests_in_flight",
            "Searches that are held.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.documents = Gauge(
            "csrkern_documents",
            "Documents in the index.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; paths that are not served count together."""
        name = path if path in PATHS else "other"
        self._requests.labels(name, str(status)).inc()
        self._request_seconds.labels(name).observe(seconds)

    def search(self, kind: str, queries: int, seconds: float) -> None:
        """Count the search of a request."""
        self._queries.labels(kind).inc(queries)
        self._search_seconds.labels(kind).observe(seconds)

    def load(self, result: str) -> None:
        """Count a load of the index."""
        self._loads.labels(result).inc()

    def text(self) -> bytes:
        """Return them as Prometheus reads them."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)

    def forget(self) -> None:
        """Drop what holds of a living process only, as this one ends."""
        if SHARED in os.environ:
            multiprocess.mark_process_dead(os.getpid())
