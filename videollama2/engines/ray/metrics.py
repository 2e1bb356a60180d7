"""Joins the metrics of all processes of the application into one page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from videollama2.serve.web.metrics import WebMetrics

LABEL = "replica"


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Return the metrics of several processes in Prometheus' text format.

    Args:
        texts: the metrics of each process, in that format, by the name that their label :data:`LABEL` gets.
    """
    found: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            kept = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                kept.add_sample(sample.name, {**sample.labels, LABEL: name}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Collected(list(found.values())))
    return generate_latest(registry)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class ClusterMetrics(WebMetrics):
    """The metrics of one process, exposed together with those of the others.

    Args:
        all_texts: returns the metrics of all processes, this one included.
    """

    def __init__(self, all_texts: Callable[[], Awaitable[Mapping[str, bytes]]]) -> None:
        super().__init__()
        self._all_texts = all_texts

    async def page(self) -> bytes:
        """See :class:`WebMetrics`."""
        return merged(await self._all_texts())
