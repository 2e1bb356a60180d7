"""What controller and API tell Prometheus: requests by path and status, and the workers there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from videollama2.serve.dispatch import Worker
from videollama2.serve.metrics import CONTENT_TYPE, PREFIX, SECONDS

__all__ = ["CONTENT_TYPE", "WebMetrics", "WorkerGauges"]

_OTHER = "other"
_LEFT = 499


class WebMetrics:
    """Counts requests of one application.

    Args:
        workers: those a controller has.
    """

    def __init__(self, workers: WorkerGauges | None = None) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self.paths: Collection[str] = ()
        """Paths that are told apart. Clients can ask for any, and each would be kept."""
        self._requests = Counter(
            PREFIX + "http_requests",
            "Requests, by path and status (499: the client left).",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            PREFIX + "http_request_duration_seconds",
            "From head to the end of the reply.",
            ["path"],
            registry=self.registry,
            buckets=SECONDS,
        )
        if workers is not None:
            self.registry.register(workers)

    def seen(self, path: str, status: int, seconds: float) -> None:
        """A request is over; status 0: without a reply."""
        path = path if path in self.paths else _OTHER
        self._requests.labels(path, str(status or _LEFT)).inc()
        self._seconds.labels(path).observe(seconds)

    def expose(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class WorkerGauges:
    """Workers and their queues per model, as they are when Prometheus asks."""

    def __init__(self, workers: Callable[[], list[Worker]]) -> None:
        self._workers = workers

    def describe(self) -> list[Metric]:
        return []  # registering asks for nothing yet

    def collect(self) -> Iterator[Metric]:
        count = GaugeMetricFamily(PREFIX + "workers", "Workers that are registered.", labels=["model_name"])
        queue = GaugeMetricFamily(
            PREFIX + "workers_queue_length", "Requests at these workers, as far as known.", labels=["model_name"]
        )
        workers = self._workers()
        for model in sorted({model for worker in workers for model in worker.models}):
            having = [worker for worker in workers if model in worker.models]
            count.add_metric([model], len(having))
            queue.add_metric([model], sum(worker.queue for worker in having))
        yield count
        yield queue
