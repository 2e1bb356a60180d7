"""Which numbers are averaged: from answered questions to means, intervals and counts. No file is read or written here.

A mean is over the questions that have a verdict; the lower bound beside it counts those without one (medium missing,
failed, judge failed) as wrong. Questions without a reference answer (test splits) are in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from videollama2.eval.items import PUBLISHED, Measure
from videollama2.eval.report.paper_numbers import PaperComparison
from videollama2.eval.report.statistics import Interval, category_bootstrap, clustered_interval
from videollama2.eval.samples import MAX_SCORE, MEDIA, Sample, Verdict

_DIGITS = 6  # of a stored number: the same on every machine
Breakdowns = Mapping[str, Callable[[Sample], Any]]


@dataclass(frozen=True)
class Counts:
    """How many questions ended how. ``answered`` + ``missing_media`` + ``failed`` = ``total``; the others overlap.

    ``unparsed``: nothing could be read in the answer; ``guessed``: the protocol put an option in its place. None where
    the samples do not tell.
    """

    total: int
    answered: int
    unparsed: int | None
    guessed: int | None
    missing_media: int
    failed: int
    judge_failed: int


@dataclass(frozen=True)
class Cell:
    """A mean over ``n`` questions about ``groups`` videos with its 95 % interval, in the metric's unit.

    ``low`` and ``high`` are None where the data cannot tell; ``value`` where no question has a verdict. ``lower_bound``
    counts questions without a verdict as wrong.
    """

    n: int
    groups: int
    value: float | None
    low: float | None
    high: float | None
    lower_bound: float | None


@dataclass(frozen=True)
class Metric:
    """One number with all that belongs to it.

    Attributes:
        unit: ``%`` or ``0-5``.
        macro: mean of the categories' means, None where no category has one; ``macro_low`` and ``macro_high`` are the
            ends of its interval, where the data can tell.
        breakdowns: cells by each further name and its values.
        paper: the paper's number for the same model, with what differs.
    """

    name: str
    protocol: str
    unit: str
    counts: Counts
    overall: Cell
    macro: float | None
    macro_low: float | None
    macro_high: float | None
    categories: Mapping[str, Cell]
    breakdowns: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    paper: PaperComparison | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``results.json`` holds it."""
        return asdict(self)


def summarise(
    samples: Sequence[Sample], protocol: str, measure: Measure | None = None, breakdowns: Breakdowns | None = None
) -> Metric:
    """A measure (accuracy, where none is given) of the samples it concerns, as read by ``protocol``."""
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
) -> list[Metric]:
    """Metrics of judged samples: accuracy (share of yes) where the judge says yes or no, and the mean score.

    Protocol ``published`` cuts a score to a whole number before averaging, as the published scorers do (4.8 counts 4).
    """
    counts = count_outcomes(samples, protocol, verdicts)
    given = [verdict if verdict is not None and verdict.error is None else None for verdict in verdicts]
    due = [True] * len(samples)
    metrics = []
    if wants_pred:
        values = [None if verdict is None else float(verdict.pred == "yes") for verdict in given]
        means = _Means(samples, values, due, scale=100.0, proportion=True)
        metrics.append(means.metric("accuracy", protocol, "%", counts, breakdowns))
    shape = int if protocol == PUBLISHED else float
    scores = [None if verdict is None or verdict.score is None else float(shape(verdict.score)) for verdict in given]
    means = _Means(samples, scores, due, scale=1.0, proportion=False, most=float(MAX_SCORE))
    return [*metrics, means.metric(name, protocol, f"0-{MAX_SCORE}", counts, breakdowns)]


def count_outcomes(
    samples: Sequence[Sample], protocol: str, verdicts: Sequence[Verdict | None] | None = None
) -> Counts:
    """How the questions ended; with ``verdicts``, one for each sample, as a judge saw them."""
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
        seen["unparsed"] += bool(reading.guessed) or reading.parsed is None
        seen["untold"] += reading.guessed is None
    untold = bool(seen["untold"])
    return Counts(
        total=len(samples),
        answered=seen["answered"],
        unparsed=(seen["unparsed"] or None) if untold else seen["unparsed"],
        guessed=None if untold else seen["guessed"],
        missing_media=seen["missing_media"],
        failed=seen["failed"],
        judge_failed=seen["judge_failed"],
    )


class _Means:
    """Values beside their samples, ready to be averaged over any subset.

    Args:
        values: None where there is no verdict.
        due: a verdict was to be had, so that None lowers the lower bound.
        scale: from a value to the metric's unit.
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
        self, name: str, protocol: str, unit: str, counts: Counts, breakdowns: Breakdowns | None = None
    ) -> Metric:
        """All cells of one metric."""
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
        """Mean and interval over the samples with these indices."""
        judged = [(index, value) for index in indices if (value := self.values[index]) is not None]
        due = sum(self.due[index] or self.values[index] is not None for index in indices)
        if not judged:
            return Cell(0, 0, None, None, None, 0.0 if due else None)
        values = [value for _, value in judged]
        groups = [self.samples[index].group for index, _ in judged]
        low, high = clustered_interval(values, groups, proportion=self.proportion)
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
        """Cells by label, in the order in which labels first appear."""
        return {name: self.cell(members) for name, members in self._indices(label).items()}

    def _indices(self, label: Callable[[Sample], Any]) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            indices.setdefault(str(label(sample)), []).append(index)
        return indices

    def _macro_interval(self) -> Interval:
        """Of the mean of categories; of a single category it is said by its own cell."""
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
