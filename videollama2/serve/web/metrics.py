"""Prometheus metrics of every server: its requests by path and status."""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from videollama2.serve.web.streaming import CLIENT_GONE

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "videollama2:"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_OTHER = "other"


class WebMetrics:
    """Counts the requests of one application.

    Args:
        more: collector whose metrics are exposed together with these.
    """

    def __init__(self, more: Collector | None = None) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.paths: Collection[str] = ()
        """Paths that get a label of their own. Any other path shares one label, since clients could invent new ones."""
        self._requests = Counter(
            PREFIX + "http_requests",
            f"HTTP requests, by path and status ({CLIENT_GONE}: the client left).",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            PREFIX + "http_request_duration_seconds",
            "Time from the head of a request to the end of its reply, by path.",
            ["path"],
            registry=self.registry,
            buckets=SECONDS,
        )
        if more is not None:
            self.registry.register(more)

    def seen(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request; status 0 means that there was no reply."""
        path = path if path in self.paths else _OTHER
        self._requests.labels(path, str(status or CLIENT_GONE)).inc()
        self._seconds.labels(path).observe(seconds)

    def expose(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    async def page(self) -> bytes:
        """Return what is served at ``/metrics``. Subclasses add the metrics of other processes."""
        return self.expose()
