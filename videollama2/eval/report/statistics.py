"""Computes confidence intervals and tests: Wilson intervals, intervals clustered by video, paired differences, and a
bootstrap of means of categories with a fixed seed.

Questions about one video are not independent, so a benchmark with several questions per video has fewer independent
observations than questions. All functions therefore take ``groups``, with one label (the video) for each value.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from videollama2.errors import ConfigError


class Interval(NamedTuple):
    """The ends of a confidence interval, in the unit of the values.

    They are None if the data do not determine them: there is only one group, or the scores have no spread.
    """

    low: float | None
    high: float | None


class PairedDifference(NamedTuple):
    """The mean of ``a - b`` over the same questions, which is positive if the first evaluation is better."""

    difference: float
    low: float | None
    high: float | None
    p_value: float | None  # two-sided test of no difference; None if the data do not determine it
    n: int
    clusters: int
    a_better: int
    b_better: int
    ties: int


def wilson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """Return the score interval of a proportion, ``k`` of ``n`` (Wilson 1927).

    Both may be fractional, for an effective sample size.

    Raises:
        ConfigError: ``k`` is outside 0..n, or ``confidence`` is outside (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= k <= n:
        raise ConfigError(f"wilson: k={k} must lie in 0..n={n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = k / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # For k = 0 and k = n, one end is exactly 0 or 1, without an error of rounding such as 1e-17.
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return Interval(low, high)


def clustered_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    proportion: bool | None = None,
) -> Interval:
    """Return an interval of the mean of ``values``, which count as independent only between ``groups``.

    Args:
        values: n numbers, or n booleans for an accuracy.
        groups: n labels; values with the same label belong to one video.
        confidence: level of the interval.
        proportion: whether the values are right/wrong. If so, the interval is a Wilson interval with the effective
            sample size of the clustered variance (Korn and Graubard 1998), which equals :func:`wilson` if no two
            questions share a video. Otherwise it is mean -+ t * cluster-robust standard error. The default is true if
            every value is 0 or 1.

    Raises:
        ConfigError: lengths differ, there are no values, or a value is not finite.
    """
    values = _checked(values, groups)
    if proportion is None:
        proportion = all(value in (0.0, 1.0) for value in values)
    if proportion:
        return _clustered_proportion(values, groups, confidence)
    mean, error, clusters = _mean_and_error(values, groups)
    if not error:  # with one video, or no spread between videos, the variance of another one is unknown
        return Interval(None, None)
    half = student_quantile(confidence, clusters - 1) * error
    return Interval(mean - half, mean + half)


def paired_difference(
    a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], confidence: float = 0.95
) -> PairedDifference:
    """Compare two models on the same questions; ``a[i]`` and ``b[i]`` are their values for question i.

    ``groups[i]`` is the video of question i.

    Raises:
        ConfigError: lengths differ, there are no values, or a value is not finite.
    """
    if len(a) != len(b):
        raise ConfigError(f"paired comparison: {len(a)} values against {len(b)}; both must hold the same questions")
    differences = _checked([float(x) - float(y) for x, y in zip(a, b, strict=True)], groups)
    mean, error, clusters = _mean_and_error(differences, groups)
    low = high = p_value = None
    if error or (error == 0 and mean == 0):  # equal gains in all videos do not determine a variance
        half = student_quantile(confidence, clusters - 1) * error
        low, high = mean - half, mean + half
        p_value = _p_value(mean, error, clusters - 1)
    wins = sum(value > 0 for value in differences)
    losses = sum(value < 0 for value in differences)
    ties = len(differences) - wins - losses
    return PairedDifference(mean, low, high, p_value, len(differences), clusters, wins, losses, ties)


def category_bootstrap(
    categories: Sequence[tuple[Sequence[float], Sequence[Hashable]]], confidence: float = 0.95, rounds: int = 2000
) -> Interval:
    """Return an interval of the mean of the categories' means, by the percentile bootstrap (Efron 1979).

    In every round, each category draws as many videos as it has, with replacement, and keeps all questions of each.

    Args:
        categories: for each category, its values and the groups (videos) to which they belong, in the same order.
        confidence: level of the interval.
        rounds: number of rounds.

    Returns:
        The interval, without ends if a category has a single video, since the variance of another one is unknown.

    Raises:
        ConfigError: lengths differ, there are no values, or a value is not finite.
    """
    import numpy as np

    _check_confidence(confidence)
    random = np.random.RandomState(0)  # NumPy guarantees this generator's numbers in all versions
    total_R = np.zeros(rounds)
    for values, groups in categories:
        sums: dict[Hashable, float] = defaultdict(float)
        for value, group in zip(_checked(values, groups), groups, strict=True):
            sums[group] += value
        if len(sums) < 2:
            return Interval(None, None)
        # A round draws videos (G) by number, and its mean of the category is the sum of their values divided by the
        # number of their questions.
        sizes = Counter(groups)
        sum_G, size_G = np.array(list(sums.values())), np.array([sizes[group] for group in sums])
        chosen_RG = random.randint(0, len(sum_G), (rounds, len(sum_G)))
        total_R += sum_G[chosen_RG].sum(1) / size_G[chosen_RG].sum(1)
    if not categories:
        raise ConfigError("interval: no values")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(total_R / len(categories), [tail, 100 - tail])
    return Interval(float(low), float(high))


@lru_cache(maxsize=256)
def student_quantile(confidence: float, freedom: int) -> float:
    """Return the t such that -t..t has the share ``confidence`` of Student's distribution with ``freedom`` degrees."""
    _check_confidence(confidence)
    # Double the upper bound until it is large enough, then bisect; 80 steps exhaust the precision of a float.
    high = 1.0
    while student_inside(high, freedom) < confidence:
        high *= 2
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        if student_inside(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high


def student_inside(t: float, freedom: int) -> float:
    """Return the share of Student's distribution inside -t..t, for an integer number of degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 (odd degrees) and 26.7.4 (even degrees).
    """
    if freedom < 1:
        raise ConfigError(f"Student's distribution needs at least 1 degree of freedom, not {freedom}")
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for step in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def _clustered_proportion(values: list[float], groups: Sequence[Hashable], confidence: float) -> Interval:
    n, share = len(values), sum(values) / len(values)
    clusters = len(set(groups))
    if clusters == n:
        return wilson(sum(values), n, confidence)
    if clusters == 1:
        return wilson(share, 1, confidence)  # a single video is a single observation
    _, error, _ = _mean_and_error(values, groups)
    assert error is not None  # there are several clusters
    independent = share * (1 - share) / (n - 1)
    if independent == 0:
        return wilson(share * clusters, clusters, confidence)  # all are right or all wrong, so the variance is 0
    # The design effect is the factor by which clustering increases the variance. Dividing n by it gives the number of
    # independent questions with the same variance; the second factor widens the interval if there are few clusters.
    design_effect = max(error**2 / independent, 1.0)  # never narrower than for independent questions
    few_clusters = (student_quantile(confidence, n - 1) / student_quantile(confidence, clusters - 1)) ** 2
    effective = n / design_effect * few_clusters
    return wilson(share * effective, effective, confidence)


def _mean_and_error(values: list[float], groups: Sequence[Hashable]) -> tuple[float, float | None, int]:
    """Return the mean, its cluster-robust standard error (None for one cluster) and the number of clusters."""
    mean = math.fsum(values) / len(values)
    residuals: dict[Hashable, list[float]] = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        residuals[group].append(value - mean)
    clusters = len(residuals)
    if clusters < 2:
        return mean, None, clusters
    squares = math.fsum(math.fsum(members) ** 2 for members in residuals.values())
    return mean, math.sqrt(clusters / (clusters - 1) * squares) / len(values), clusters


def _p_value(mean: float, error: float, freedom: int) -> float:
    if error == 0:
        return 1.0
    return max(0.0, 1 - student_inside(abs(mean) / error, freedom))


def _checked(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    if len(values) != len(groups):
        raise ConfigError(f"interval: {len(values)} values but {len(groups)} group labels; they must pair up")
    if not len(values):
        raise ConfigError("interval: no values")
    numbers = [float(value) for value in values]
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ConfigError(f"interval: value {index} is {number}; values must be finite")
    return numbers


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie between 0 and 1, both excluded")
