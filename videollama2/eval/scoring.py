"""Turns stored answers into samples, which say what was read and whether it is right, and samples into metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from videollama2.eval.items import PROTOCOLS, Benchmark, Item
from videollama2.eval.report.metrics import Metric, summarise, summarise_judged
from videollama2.eval.samples import Reading, Sample, StoredAnswer

if TYPE_CHECKING:  # benchmarks without a judge must not import the judging package
    from videollama2.eval.judging.aspects import Judging


def make_sample(benchmark: Benchmark, item: Item, answer: StoredAnswer, protocol: str) -> Sample:
    """Return the sample of an item and its stored answer; ``protocol`` chooses the reading that comes first."""
    readings = {name: _read(benchmark, item, answer, name) for name in PROTOCOLS}
    return Sample(
        id=item.id,
        category=item.category,
        group=item.group,
        question=item.question,
        answer=item.answer,
        instruction=answer.instruction,
        output=answer.output,
        reading=readings[protocol],
        protocols=readings,
        breakdowns={name: item.extra.get(name) for name in benchmark.breakdowns},
        finish_reason=answer.finish_reason,
        error=answer.error,
        error_kind=answer.error_kind,
        note=answer.note,
    )


def _read(benchmark: Benchmark, item: Item, answer: StoredAnswer, protocol: str) -> Reading:
    if answer.error is not None or not isinstance(answer.output, str):
        return Reading()
    return benchmark.read(item, answer.output, protocol)


def read_metrics(benchmark: Benchmark, samples: Sequence[Sample], protocols: Sequence[str] = PROTOCOLS) -> list[Metric]:
    """Return the benchmark's measures of parsed answers, under each of these protocols.

    If there are several measures, those that concern no sample are left out.
    """
    breakdowns = {name: _breakdown(name) for name in benchmark.breakdowns}
    measures = [
        measure for measure in benchmark.measures if len(benchmark.measures) == 1 or any(map(measure.concerns, samples))
    ]
    return [summarise(samples, protocol, measure, breakdowns) for measure in measures for protocol in protocols]


def _breakdown(name: str) -> Callable[[Sample], Any]:
    return lambda sample: sample.breakdowns.get(name)


def judged_metrics(
    benchmark: Benchmark, samples: Sequence[Sample], judging: Judging, progress: bool = True
) -> tuple[list[Sample], list[Metric]]:
    """Judge samples and return them with their verdicts, and the metrics of every aspect under every protocol."""
    from videollama2.eval.judging.aspects import judge_aspects

    judged, aspects = judge_aspects(benchmark, samples, judging, progress)
    metrics = [
        metric
        for aspect in aspects
        for protocol in PROTOCOLS
        for metric in summarise_judged(
            aspect.samples,
            aspect.verdicts,
            aspect.wants_pred,
            protocol,
            aspect.name,
            is_yes=partial(aspect.is_yes, protocol=protocol),
            wants_score=aspect.wants_score,
        )
    ]
    return judged, metrics
