"""Averages over answered questions: means, intervals and counts. This module reads and writes no files.

A mean is over the questions that have a verdict. The lower bound beside it counts questions without one (the medium is
missing, the answer or the judge failed) as wrong. Neither includes questions without a reference answer (test splits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from videollama2.eval.items import PUBLISHED
from videollama2.eval.measures import Measure
from videollama2.eval.report.paper_numbers import PaperComparison
from videollama2.eval.report.statistics import Interval, category_bootstrap, clustered_interval
from videollama2.eval.samples import MAX_SCORE, MEDIA, Sample, Verdict

_DIGITS = 6  # stored numbers are rounded to this many decimals, so that they are the same on every machine
Breakdowns = Mapping[str, Callable[[Sample], Any]]


@dataclass(frozen=True)
class OutcomeCounts:
    """Numbers of questions by outcome. ``answered`` + ``missing_media`` + ``failed`` = ``total``; the others overlap.

    ``unparsed`` counts answers in which nothing could be read, ``guessed`` those for which the protocol used a
    fallback. They are None if the samples do not say so. ``silent`` counts questions about the sound of a video that
    has no sound track, so that silence was heard.
    """

    total: int
    answered: int
    unparsed: int | None
    guessed: int | None
    missing_media: int
    failed: int
    judge_failed: int
    silent: int = 0


@dataclass(frozen=True)
class Cell:
    """A mean over ``n`` questions about ``groups`` videos with its 95 % interval, in the metric's unit.

    ``low`` and ``high`` are None if the data do not determine an interval, and ``value`` is None if no question has a
    verdict. ``lower_bound`` counts questions without a verdict as wrong.
    """

    n: int
    groups: int
    value: float | None
    low: float | None
    high: float | None
    lower_bound: float | None


@dataclass(frozen=True)
class Metric:
    """A number of a report, with its counts, intervals and breakdowns.

    Attributes:
        unit: ``%`` or ``0-5``.
        macro: mean of the categories' means, or None if no category has one.
        macro_low, macro_high: ends of the interval of ``macro``, or None if the data do not determine it.
        breakdowns: for each further name, the cells by its values.
        paper: the paper's number for the same model, with the differences between the measurements.
    """

    name: str
    protocol: str
    unit: str
    counts: OutcomeCounts
    overall: Cell
    macro: float | None
    macro_low: float | None
    macro_high: float | None
    categories: Mapping[str, Cell]
    breakdowns: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    paper: PaperComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the metric as ``results.json`` holds it."""
        return asdict(self)


def summarise(
    samples: Sequence[Sample], protocol: str, measure: Measure | None = None, breakdowns: Breakdowns | None = None
) -> Metric:
    """Return a measure (by default accuracy) over the samples that it concerns, as read by ``protocol``."""
    measure = measure or Measure()
    concerned = [sample for sample in samples if measure.concerns(sample)]
    values = [measure.value(sample.read_by(protocol)) for sample in concerned]
    due = [sample.answer is not None for sample in concerned]
    means = _Means(concerned, values, due, scale=100.0, proportion=measure.proportion)
    return means.metric(measure.name, protocol, "%", count_outcomes(concerned, protocol), breakdowns)


def summarise_judged(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict | None],
    wants_pred: bool,
    protocol: str,
    name: str = "score",
    breakdowns: Breakdowns | None = None,
    is_yes: Callable[[Verdict], bool] = lambda verdict: verdict.pred == "yes",
    wants_score: bool = True,
) -> list[Metric]:
    """Return the metrics of judged samples: the mean score and, if the judge says yes or no, accuracy (share of yes).

    The protocol ``published`` truncates scores to whole numbers before averaging, as published scorers do (4.8 is 4).
    ``is_yes`` says which verdicts count as right. Without ``wants_score`` there is only the accuracy.
    """
    counts = count_outcomes(samples, protocol, verdicts)
    given = [verdict if verdict is not None and verdict.error is None else None for verdict in verdicts]
    due = [True] * len(samples)
    metrics = []
    if wants_pred:
        values = [None if verdict is None else float(is_yes(verdict)) for verdict in given]
        means = _Means(samples, values, due, scale=100.0, proportion=True)
        metrics.append(means.metric("accuracy", protocol, "%", counts, breakdowns))
    if not wants_score:
        return metrics
    shape = int if protocol == PUBLISHED else float
    scores = [None if verdict is None or verdict.score is None else float(shape(verdict.score)) for verdict in given]
    means = _Means(samples, scores, due, scale=1.0, proportion=False, most=float(MAX_SCORE))
    return [*metrics, means.metric(name, protocol, f"0-{MAX_SCORE}", counts, breakdowns)]


def count_outcomes(
    samples: Sequence[Sample], protocol: str, verdicts: Sequence[Verdict | None] | None = None
) -> OutcomeCounts:
    """Count questions by outcome; with ``verdicts``, one for each sample, count failures of the judge."""
    seen: Counter[str] = Counter()
    for index, sample in enumerate(samples):
        if sample.error:
            seen["missing_media" if sample.error_kind == MEDIA else "failed"] += 1
            continue
        seen["answered"] += 1
        if verdicts is not None:
            verdict = verdicts[index]
            seen["judge_failed"] += verdict is None or verdict.error is not None
            continue
        reading = sample.read_by(protocol)
        seen["guessed"] += bool(reading.guessed)
        # A guess counts as unparsed too: a published parser that falls back to an option has read nothing.
        seen["unparsed"] += bool(reading.guessed) or reading.parsed is None
        seen["untold"] += reading.guessed is None
    # Files of the published code hold options and not words, so nobody can tell which of them were guesses. A zero
    # would claim that there were none.
    untold = bool(seen["untold"])
    return OutcomeCounts(
        total=len(samples),
        answered=seen["answered"],
        unparsed=(seen["unparsed"] or None) if untold else seen["unparsed"],
        guessed=None if untold else seen["guessed"],
        missing_media=seen["missing_media"],
        failed=seen["failed"],
        judge_failed=seen["judge_failed"],
        silent=_count_silent(samples),
    )


def _count_silent(samples: Sequence[Sample]) -> int:
    notes = [sample.note for sample in samples if sample.note]
    if not notes:
        return 0
    from videollama2.media.audio import NO_TRACK  # reports without sound need not import it

    return sum(NO_TRACK in note for note in notes)


class _Means:
    """The values of samples, which can be averaged over any subset.

    Args:
        values: value of each sample, or None without a verdict.
        due: whether each sample should have a verdict, so that its absence lowers the lower bound.
        scale: factor from a value to the metric's unit.
        proportion: whether values are only 0 and 1.
        most: the largest possible value.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        values: Sequence[float | None],
        due: Sequence[bool],
        scale: float,
        proportion: bool,
        most: float = 1.0,
    ) -> None:
        self.samples, self.values, self.due = samples, values, due
        self.scale, self.proportion, self.most = scale, proportion, most

    def metric(
        self, name: str, protocol: str, unit: str, counts: OutcomeCounts, breakdowns: Breakdowns | None = None
    ) -> Metric:
        """Return a metric with all its cells."""
        categories = self.by(lambda sample: sample.category)
        filled = [cell.value for cell in categories.values() if cell.value is not None]
        low, high = self._macro_interval()
        return Metric(
            name=name,
            protocol=protocol,
            unit=unit,
            counts=counts,
            overall=self.cell(range(len(self.samples))),
            macro=round(sum(filled) / len(filled), _DIGITS) if filled else None,
            macro_low=self._shown(low),
            macro_high=self._shown(high),
            categories=categories,
            breakdowns={key: self.by(label) for key, label in (breakdowns or {}).items()},
        )

    def cell(self, indices: Sequence[int]) -> Cell:
        """Return the mean and its interval over the samples with these indices."""
        judged = [(index, value) for index in indices if (value := self.values[index]) is not None]
        # The lower bound divides by what should have been judged: a judge that fails on the hard answers must not make
        # a model look better.
        due = sum(self.due[index] or self.values[index] is not None for index in indices)
        if not judged:
            return Cell(0, 0, None, None, None, 0.0 if due else None)
        values = [value for _, value in judged]
        groups = [self.samples[index].group for index, _ in judged]
        low, high = clustered_interval(values, groups, proportion=self.proportion)
        # The interval of a score is its mean and as much on either side, whether the scale goes so far or not.
        if not self.proportion and low is not None and high is not None:
            low, high = max(low, 0.0), min(high, self.most)
        return Cell(
            n=len(values),
            groups=len(set(groups)),
            value=self._shown(sum(values) / len(values)),
            low=self._shown(low),
            high=self._shown(high),
            lower_bound=self._shown(sum(values) / due),
        )

    def by(self, label: Callable[[Sample], Any]) -> dict[str, Cell]:
        """Return the cells by label, in the order in which labels first appear."""
        return {name: self.cell(members) for name, members in self._indices(label).items()}

    def _indices(self, label: Callable[[Sample], Any]) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            indices.setdefault(str(label(sample)), []).append(index)
        return indices

    def _macro_interval(self) -> Interval:
        """Return the interval of the mean of categories; a single category has its interval in its own cell."""
        categories = []
        for indices in self._indices(lambda sample: sample.category).values():
            judged = [
                (value, self.samples[index].group) for index in indices if (value := self.values[index]) is not None
            ]
            if judged:
                values, groups = zip(*judged, strict=True)
                categories.append((values, groups))
        return category_bootstrap(categories) if len(categories) > 1 else Interval(None, None)

    def _shown(self, number: float | None) -> float | None:
        return None if number is None else round(number * self.scale, _DIGITS)
