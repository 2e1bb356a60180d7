"""Defines what is measured about answers: numbers about readings, and the aspects that a judge grades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from videollama2.eval.samples import Reading, Sample


def right(reading: Reading) -> float | None:
    """Return 1 for a right answer, 0 for a wrong one, and None without a verdict."""
    return None if reading.correct is None else float(reading.correct)


@dataclass(frozen=True)
class Measure:
    """A number about readings: the mean of ``value`` over the samples for which ``concerns`` is true, times 100.

    Attributes:
        value: function from a reading to a number from 0 to 1, or to None if it has no verdict.
        proportion: whether the values are only 0 and 1, so that the interval is that of a proportion.
    """

    name: str = "accuracy"
    value: Callable[[Reading], float | None] = right
    proportion: bool = True
    concerns: Callable[[Sample], bool] = lambda sample: True


@dataclass(frozen=True)
class Aspect:
    """An aspect of answers that a judge grades.

    Attributes:
        name: name in the paper's tables.
        rubric: name of the rubric.
        categories: categories of the questions to grade; if there are none, all questions are graded.
        exact_yes: whether the published scorer counts only "yes" in small letters as yes, and "Yes" as no.
    """

    name: str
    rubric: str
    categories: tuple[str, ...] = ()
    exact_yes: bool = False

    def concerns(self, sample: Sample) -> bool:
        return not self.categories or sample.category in self.categories
