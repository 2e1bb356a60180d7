"""Prometheus gauges of a controller: the registered workers and the lengths of their queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from videollama2.serve.cluster.registry import Worker
from videollama2.serve.web.metrics import PREFIX


class WorkerGauges:
    """Collects the numbers of workers and of queued requests per model, read at each scrape."""

    def __init__(self, workers: Callable[[], list[Worker]]) -> None:
        self._workers = workers

    def describe(self) -> list[Metric]:
        return []  # no metrics at registration

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
