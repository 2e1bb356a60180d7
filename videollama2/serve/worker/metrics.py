"""Prometheus metrics of a worker, under vLLM's names with the prefix ``videollama2:``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from videollama2.serve.web.metrics import PREFIX, SECONDS

if TYPE_CHECKING:
    from videollama2.inference.answer import Answer, Result

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_OUTCOMES = {"stop": "stop", "length": "length", "cancelled": "abort"}

_TEXTS = {
    "num_requests_running": "Requests that are being answered now.",
    "num_requests_waiting": "Requests in the engine's queue now.",
    "kv_cache_usage_perc": "Share of the rows of the running batch that are taken, from 0 to 1.",
    "encoder_cache_queries_total": "Media looked up among those encoded before.",
    "encoder_cache_hits_total": "Media that had been encoded before.",
    "encoder_cache_bytes": "Memory of encoded media that are kept, in bytes.",
    "mm_cache_queries_total": "Media looked up among those decoded before.",
    "mm_cache_hits_total": "Media that had been decoded before.",
    "mm_cache_bytes": "Memory of decoded media that are kept, in bytes.",
    "prefix_cache_bytes": "Memory of the beginnings of prompts that are kept, in bytes.",
    "decoding_processes_started_total": "Processes started to decode media.",
}
"""Help texts of the values that are read at each scrape."""

Gauges = Callable[[], dict[str, float]]


class ServeMetrics:
    """Counts the work of one worker.

    Args:
        model: name of the model, used as a label of all metrics.
        gauges: returns the current values of the names in :data:`_TEXTS`; names that end in ``_total`` are counters.
        on_end: called with every result, in the model's thread.
    """

    def __init__(self, model: str, gauges: Gauges, on_end: Callable[[Result], None] | None = None) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._model, self._on_end = model, on_end
        self.registry.register(_Now(model, gauges))
        self._tokens = {
            name: self._counter(name, text)
            for name, text in {
                "prompt_tokens": "Prompt tokens of finished requests.",
                "prompt_audio_tokens": "Prompt tokens of finished requests that stand for sound.",
                "generation_tokens": "Tokens of finished answers.",
                "prefix_cache_queries": "Prompt tokens looked up among the kept beginnings of prompts.",
                "prefix_cache_hits": "Prompt tokens found among the kept beginnings of prompts.",
            }.items()
        }
        self._ended = self._labelled("request_success", "Finished answers, by reason.", "finished_reason")
        self._media = self._labelled("media", "Media of accepted requests, by kind.", "kind")
        self._rejected = self._labelled("rejected", "Refused requests, by reason.", "reason")
        self._seconds = {
            name: self._histogram(name, text, SECONDS)
            for name, text in {
                "time_to_first_token_seconds": "Time from the complete request to the first token of its answer.",
                "e2e_request_latency_seconds": "Time from the complete request to the end of its answer.",
                "request_queue_time_seconds": "Time in the engine's queue.",
                "request_prefill_time_seconds": "Time from leaving the queue to the first token.",
                "request_decode_time_seconds": "Time from the first token to the last.",
                "media_decode_seconds": "Time for fetching and decoding the media of a request.",
                "encode_seconds": "Time for encoding the media of a request.",
            }.items()
        }
        self._gap = self._histogram(
            "inter_token_latency_seconds", "Time between two pieces of an answer.", _TOKEN_SECONDS
        )
        self._lengths = {
            name: self._histogram(name, text, _TOKENS)
            for name, text in {
                "request_prompt_tokens": "Number of tokens in a prompt.",
                "request_generation_tokens": "Number of tokens in an answer.",
            }.items()
        }

    def rejected(self, reason: str) -> None:
        """Count a request that was refused before it reached the engine."""
        self._rejected.labels(self._model, reason).inc()

    def read(self, kinds: Iterable[str]) -> None:
        """Count the media of a request."""
        for kind in kinds:
            self._media.labels(self._model, kind).inc()

    def watch(self, answer: Answer, prepared_s: float = 0.0, has_media: bool = False) -> None:
        """Observe an answer until it ends.

        Args:
            prepared_s: seconds that fetching and decoding its media took.
        """
        if has_media:
            self._seconds["media_decode_seconds"].observe(prepared_s)
        # The channel is kept and not the answer, so that an abandoned answer can be garbage-collected.
        _AnswerTimer(answer.channel, self._gap.observe, lambda result: self._end(result, prepared_s))

    def expose(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _end(self, result: Result, prepared_s: float) -> None:
        if self._on_end is not None:
            self._on_end(result)
        self._ended.labels(self._model, _OUTCOMES.get(result.finish_reason, "error")).inc()
        self._tokens["prompt_tokens"].inc(result.prompt_tokens)
        self._tokens["prompt_audio_tokens"].inc(result.audio_tokens)
        self._tokens["generation_tokens"].inc(result.completion_tokens)
        self._tokens["prefix_cache_queries"].inc(result.prompt_tokens)
        self._tokens["prefix_cache_hits"].inc(result.cached_tokens)
        timings = result.timings
        self._seconds["e2e_request_latency_seconds"].observe(prepared_s + timings.total)
        # An answer without a token has no first one, and zeros would pull the averages down.
        if not result.completion_tokens:
            return
        self._seconds["time_to_first_token_seconds"].observe(prepared_s + timings.first_token)
        self._seconds["request_queue_time_seconds"].observe(timings.queued)
        self._seconds["request_prefill_time_seconds"].observe(max(0.0, timings.first_token - timings.queued))
        self._seconds["request_decode_time_seconds"].observe(max(0.0, timings.total - timings.first_token))
        if timings.media:
            self._seconds["encode_seconds"].observe(timings.media)
        self._lengths["request_prompt_tokens"].observe(result.prompt_tokens)
        self._lengths["request_generation_tokens"].observe(result.completion_tokens)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(PREFIX + name, text, ["model_name", label], registry=self.registry)

    def _counter(self, name: str, text: str) -> Any:
        return Counter(PREFIX + name, text, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        found = Histogram(PREFIX + name, text, ["model_name"], registry=self.registry, buckets=buckets)
        return found.labels(self._model)


class _AnswerTimer:
    """Listens to one answer. It runs in the model's thread, so it must be quick and must not raise errors."""

    def __init__(self, channel: Any, on_gap: Callable[[float], None], on_end: Callable[[Result], None]) -> None:
        self._channel, self._on_gap, self._on_end = channel, on_gap, on_end
        self._last: float | None = None
        self._calls = 0
        self._listening = ExitStack()
        self._listening.enter_context(channel.listening(self._changed))
        if channel.result is not None:
            self._finish()  # the answer ended before listening began

    def _changed(self) -> None:
        self._calls += 1
        if self._calls == 1:
            return  # the first call only confirms the registration
        if self._channel.result is not None:
            self._finish()
            return
        now = monotonic()
        if self._last is not None:
            self._on_gap(now - self._last)
        self._last = now

    def _finish(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self._channel.result)
        self._listening.close()


class _Now:
    """Collects values that are read at each scrape."""

    def __init__(self, model: str, gauges: Gauges) -> None:
        self._model, self._gauges = model, gauges

    def collect(self) -> Iterator[Metric]:
        for name, value in self._gauges().items():
            text = _TEXTS[name]
            if name.endswith("_total"):
                family: Metric = CounterMetricFamily(PREFIX + name.removesuffix("_total"), text, labels=["model_name"])
            else:
                family = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family
