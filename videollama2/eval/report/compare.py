"""Compares two evaluations of the same questions: how much better one is, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from videollama2.errors import DataError
from videollama2.eval.items import PROTOCOLS
from videollama2.eval.report.statistics import PairedDifference, paired_difference
from videollama2.eval.samples import Sample
from videollama2.eval.store import read_samples


@dataclass(frozen=True)
class Comparison:
    """The comparison of one metric.

    ``only_a`` and ``only_b`` are the numbers of questions with a verdict in one evaluation only; these are left out.
    """

    metric: str
    protocol: str
    unit: str
    a: float
    b: float
    difference: PairedDifference
    only_a: int
    only_b: int


def compare(a: Path, b: Path) -> list[Comparison]:
    """Compare every metric that both evaluations have.

    Raises:
        DataError: the evaluations are of different questions, or no question has a verdict in both.
    """
    samples_a, samples_b = read_samples(a), read_samples(b)
    shared = [name for name in samples_a if name in samples_b]
    different = [name for name in shared if samples_a[name].question != samples_b[name].question]
    if not shared or different:
        why = f"question {different[0]!r} has another text" if different else "they share no question"
        raise DataError(f"{a} and {b} are not evaluations of the same questions: {why}")
    values_a, values_b = _values(samples_a), _values(samples_b)
    found = [
        _compare(key, values_a[key], values_b[key], samples_a)
        for key in values_a
        if key in values_b and set(values_a[key]) & set(values_b[key])
    ]
    if not found:
        raise DataError(f"{a} and {b} have no question with a verdict in both")
    return found


def format_comparisons(comparisons: Sequence[Comparison], a: str, b: str) -> str:
    """Return comparisons as a table; a difference is the second evaluation minus the first."""
    lines = [f"A: {a}", f"B: {b}", ""]
    head = ("metric", "A", "B", "B - A", "95 % interval", "p", "questions", "A / B better")
    lines.append("".join(f"{text:<{width}}" for text, width in zip(head, _WIDTHS, strict=True)).rstrip())
    for each in comparisons:
        d = each.difference
        interval = "-" if d.low is None else f"{d.low:+.2f} .. {d.high:+.2f}"
        p = "-" if d.p_value is None else f"{d.p_value:.3f}"
        cells = (
            f"{each.metric}, {each.protocol} ({each.unit})",
            f"{each.a:.2f}",
            f"{each.b:.2f}",
            f"{d.difference:+.2f}",
            interval,
            p,
            str(d.n),
            f"{d.b_better} / {d.a_better}",
        )
        lines.append("".join(f"{text:<{width}}" for text, width in zip(cells, _WIDTHS, strict=True)).rstrip())
    left = [f"{each.metric}: {each.only_a} / {each.only_b}" for each in comparisons if each.only_a or each.only_b]
    if left:
        lines += ["", "left out, a verdict in A / B alone: " + "; ".join(dict.fromkeys(left))]
    return "\n".join(lines)


_WIDTHS = (36, 8, 8, 9, 19, 8, 11, 12)


def _values(samples: Mapping[str, Sample]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return for each (metric, protocol, unit) the values of the questions that have one."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, sample in samples.items():
        for protocol in PROTOCOLS:
            reading = (sample.protocols or {}).get(protocol)
            if reading is not None and reading.correct is not None:
                found.setdefault(("accuracy", protocol, "%"), {})[name] = 100.0 * reading.correct
        for aspect, verdict in sample.verdicts().items():
            if verdict is None or verdict.score is None:
                continue
            if verdict.pred is not None:
                found.setdefault(("judged accuracy", "judge", "%"), {})[name] = 100.0 * (verdict.pred == "yes")
            found.setdefault((aspect, "judge", "0-5"), {})[name] = float(verdict.score)
    return found


def _compare(
    key: tuple[str, str, str], a: Mapping[str, float], b: Mapping[str, float], samples: Mapping[str, Sample]
) -> Comparison:
    both = [name for name in a if name in b]
    values_a, values_b = [a[name] for name in both], [b[name] for name in both]
    difference = paired_difference(values_b, values_a, [samples[name].group for name in both])
    mean_a, mean_b = sum(values_a) / len(both), sum(values_b) / len(both)
    return Comparison(*key, mean_a, mean_b, difference, len(a) - len(both), len(b) - len(both))
