"""Intervals against values from tables and closed forms, and against simulated repetition."""

import math
import random

import pytest

from videollama2.errors import ConfigError
from videollama2.eval.report.statistics import (
    clustered_interval,
    paired_difference,
    student_inside,
    student_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(k, n, low, high):
    found = wilson(k, n)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_wilson_at_the_edges():
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    for k, n in ((-1, 3), (4, 3)):
        with pytest.raises(ConfigError, match=f"k={k}"):
            wilson(k, n)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (30, 2.0423), (100, 1.9840), (3000, 1.9608)],
)
def test_student_quantile_equals_the_table(freedom, quantile):
    assert student_quantile(0.95, freedom) == pytest.approx(quantile, abs=5e-5)


def test_student_inside_is_a_distribution():
    assert student_inside(0.0, 7) == 0.0
    assert student_inside(1.0, 1) == pytest.approx(0.5)  # Cauchy
    assert student_inside(1e9, 6) == pytest.approx(1.0)


def test_one_question_per_video_is_plain_wilson():
    values = [True] * 7 + [False] * 5
    assert clustered_interval(values, list(range(12))) == wilson(7, 12)


def test_equal_answers_within_a_video_count_as_one_observation_each():
    """Four copies of every question carry no more information than one (but for the correction for few videos)."""
    single = [True, False, True, True, False, True, False, True] * 5
    groups = list(range(len(single)))
    copied = clustered_interval(single * 4, groups * 4)
    alone = wilson(sum(single), len(single))
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)
    naive = wilson(4 * sum(single), 4 * len(single))
    assert copied.high - copied.low > 1.8 * (naive.high - naive.low)


def test_clustering_never_narrows_an_accuracy():
    """One right and one wrong in every video: no variance between videos, yet no more claim than 20 questions."""
    values, groups = [True, False] * 10, [i // 2 for i in range(20)]
    low, high = clustered_interval(values, groups)
    plain = wilson(10, 20)
    assert low <= plain.low
    assert high >= plain.high


def test_all_right_is_not_certainty():
    low, high = clustered_interval([True] * 12, [i // 4 for i in range(12)])
    assert high == 1.0
    assert low == wilson(3, 3).low


def test_one_video_tells_little():
    assert clustered_interval([True, False], ["v", "v"]) == wilson(0.5, 1)
    assert clustered_interval([1.5, 3.5], ["v", "v"]) == (None, None)


def test_scores_with_one_question_per_video_are_the_textbook_interval():
    values = [3.0, 4.0, 2.0, 5.0, 1.5]
    mean = sum(values) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 4 / 5)
    low, high = clustered_interval(values, range(5))
    assert low == pytest.approx(mean - 2.7764451 * spread)
    assert high == pytest.approx(mean + 2.7764451 * spread)


def test_scores_of_zero_and_five_are_no_proportion():
    low, high = clustered_interval([0, 5, 5], "abc", proportion=False)
    assert low < 0 < 5 < high


def test_scores_without_spread_tell_no_interval():
    assert clustered_interval([4.0, 4.0, 4.0], ["a", "b", "c"], proportion=False) == (None, None)
    gained = paired_difference([4.0, 5.0], [3.0, 4.0], ["a", "b"])
    assert (gained.difference, gained.low, gained.high, gained.p_value) == (1.0, None, None, None)


def test_clustered_interval_covers_the_truth_as_often_as_it_says():
    """300 repetitions with 25 videos of 6 questions that hang together; naive Wilson covers clearly less."""
    source = random.Random(1)
    covered = naive = 0
    for _ in range(300):
        values, groups = [], []
        for video in range(25):
            chance = source.betavariate(1.2, 0.8)  # mean 0.6
            values += [source.random() < chance for _ in range(6)]
            groups += [video] * 6
        low, high = clustered_interval(values, groups)
        covered += low <= 0.6 <= high
        plain = wilson(sum(values), len(values))
        naive += plain.low <= 0.6 <= plain.high
    assert covered / 300 >= 0.92
    assert naive / 300 < 0.85


def test_paired_difference_by_hand():
    a, b = [1, 1, 0, 1], [0, 1, 1, 0]
    found = paired_difference(a, b, "wxyz")
    assert (found.difference, found.a_better, found.b_better, found.ties) == (0.25, 2, 1, 1)
    assert (found.n, found.clusters) == (4, 4)
    error = math.sqrt(2.75 / 3 / 4)
    assert found.low == pytest.approx(0.25 - 3.1824463 * error)
    assert found.high == pytest.approx(0.25 + 3.1824463 * error)
    assert found.p_value == pytest.approx(1 - student_inside(0.25 / error, 3))


def test_paired_difference_changes_sign_with_the_order():
    a, b, groups = [3, 4, 2.5, 1], [2, 4, 1, 1], ["v", "v", "w", "x"]
    one, other = paired_difference(a, b, groups), paired_difference(b, a, groups)
    assert one.difference == -other.difference
    assert one.low == -other.high
    assert one.p_value == other.p_value


def test_pairing_is_sharper_than_two_intervals():
    """B errs where A errs, and once more: the shared difficulty of the questions cancels."""
    a = [i % 2 == 0 for i in range(200)]
    b = [right and i % 20 != 0 for i, right in enumerate(a)]
    found = paired_difference(a, b, range(200))
    assert found.low > 0
    assert wilson(sum(b), 200).high > wilson(sum(a), 200).low


def test_paired_difference_of_the_same_answers():
    found = paired_difference([1, 0], [1, 0], "vw")
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert paired_difference([1, 0], [0, 0], "vv").p_value is None


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [([1.0], ["v", "w"], "1 values but 2"), ([], [], "no values"), ([1.0, math.nan], "vw", "value 1 is nan")],
)
def test_bad_values_are_named(values, groups, message):
    with pytest.raises(ConfigError, match=message):
        clustered_interval(values, groups)


def test_models_must_answer_the_same_questions():
    with pytest.raises(ConfigError, match="3 values against 2"):
        paired_difference([1, 0, 1], [1, 0], "vwx")
    with pytest.raises(ConfigError, match="confidence=95"):
        wilson(1, 2, confidence=95)
