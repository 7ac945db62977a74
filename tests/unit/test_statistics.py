"""Intervals, paired differences, relative gains: numbers by hand, then coverage on simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from remask.errors import UserError
from remask.evaluation.statistics import (
    Difference,
    cluster_interval,
    mcnemar,
    mean_interval,
    paired_difference,
    relative_gain,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # (p + z²/2n ± z√(p(1−p)/n + z²/4n²)) / (1 + z²/n) with z = 1.959964, worked out on paper
        (5, 10, 0.236593, 0.763407),
        (0, 10, 0.0, 0.277533),  # z²/(n + z²) = 3.841459/13.841459
        (10, 10, 0.722467, 1.0),
    ],
)
def test_wilson_by_hand(correct: int, n: int, low: float, high: float) -> None:
    interval = wilson(correct, n)
    assert interval.mean == correct / n
    assert interval.n == n
    assert interval.low == pytest.approx(low, abs=1e-5)
    assert interval.high == pytest.approx(high, abs=1e-5)


@pytest.mark.parametrize(("correct", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)])
def test_wilson_as_published(correct: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3: four decimals are printed."""
    interval = wilson(correct, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


def test_wilson_widens_with_the_level() -> None:
    assert wilson(30, 100, 0.99).low < wilson(30, 100, 0.95).low < wilson(30, 100, 0.5).low < 0.3


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 10), (11, 10)])
def test_wilson_refuses_what_is_no_share(correct: int, n: int) -> None:
    with pytest.raises(UserError, match="no share"):
        wilson(correct, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(UserError, match="confidence level"):
        wilson(1, 2, level)


def test_relative_gain_of_the_published_averages() -> None:
    for candidate, baseline, percent in ((35.8, 34.9, 2.6), (34.4, 33.7, 2.1), (33.7, 33.2, 1.5)):
        assert 100 * relative_gain(candidate, baseline).over_score == pytest.approx(percent, abs=0.05)


def test_relative_gain_over_the_delta() -> None:
    # baseline gained 4 points, candidate 6: half as much again
    gain = relative_gain(0.36, 0.34, 0.30)
    assert gain.over_delta == pytest.approx(0.5)
    assert gain.over_score == pytest.approx(0.02 / 0.34)


def test_relative_gain_without_a_denominator() -> None:
    assert relative_gain(0.2, 0.0, 0.1).over_score is None
    assert relative_gain(0.2, 0.1).over_delta is None
    assert relative_gain(0.2, 0.1, 0.1).over_delta is None  # the baseline gained nothing
    assert relative_gain(0.2, 0.1, 0.3).over_delta is None  # the baseline lost


def test_mean_interval_agrees_with_the_normal_one_on_many_values() -> None:
    values = np.random.default_rng(0).random(400)
    interval = mean_interval(values, seed=1)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval.n == 400


def test_intervals_stay_within_the_scores() -> None:
    interval = mean_interval([0.0, 0.0, 0.0, 1.0], seed=0)
    assert 0.0 <= interval.low < 0.25 < interval.high <= 1.0


def test_all_right_is_not_certainty() -> None:
    assert cluster_interval(np.ones((3, 20))) == wilson(20, 20)
    assert cluster_interval(np.zeros((3, 20))) == wilson(0, 20)
    constant = cluster_interval(np.full((2, 5), 0.25))
    assert (constant.low, constant.mean, constant.high) == (0.25, 0.25, 0.25)


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(3).random((3, 30))
    assert cluster_interval(scores, seed=7) == cluster_interval(scores, seed=7)
    assert cluster_interval(scores, seed=7) != cluster_interval(scores, seed=8)
    generator = np.random.default_rng(7)
    assert cluster_interval(scores, seed=generator) == cluster_interval(scores, seed=7)


def test_seeds_that_disagree_widen_the_interval() -> None:
    columns = np.random.default_rng(0).random((1, 100))
    agreeing = np.repeat(columns, 3, axis=0)
    disagreeing = agreeing + np.array([[-0.2], [0.0], [0.2]])
    narrow, wide = cluster_interval(agreeing), cluster_interval(disagreeing)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_identical_arms_may_still_differ_on_problems_that_were_not_asked() -> None:
    """1 − 0.025^(1/50) = 0.0711: were more than 7.1 % of problems answered otherwise, 50 without one would be rare."""
    scores = (np.random.default_rng(0).random((2, 50)) < 0.4).astype(float)
    difference = paired_difference(scores, scores)
    half = 1 - 0.025 ** (1 / 50)
    assert half == pytest.approx(0.0711, abs=1e-4)
    assert difference == Difference(mean=0.0, low=-half, high=half, p_value=1.0, n=50, seeds=2)
    assert not difference.found


@pytest.mark.parametrize(("n", "found"), [(4, False), (6, True)])
def test_every_problem_won_is_a_finding_from_six_problems_on(n: int, found: bool) -> None:
    """By hand: q = 1 − 0.025^(1/n), the interval [1 − 2q, 1]; the sign test's p is 2·2⁻ⁿ."""
    difference = paired_difference(np.ones((1, n)), np.zeros((1, n)))
    assert (difference.low, difference.high) == pytest.approx((1 - 2 * (1 - 0.025 ** (1 / n)), 1.0))
    assert difference.p_value == pytest.approx(2 * 0.5**n)
    assert difference.found == found == (difference.p_value < 0.05)


def test_difference_by_hand() -> None:
    # 60 of 100 problems only a solves, 10 only b, 30 both: mean 0.5, variance (0.7 − 0.25)·100/99 over 100 problems
    a = np.array([[1.0] * 60 + [0.0] * 10 + [1.0] * 30])
    b = np.array([[0.0] * 60 + [1.0] * 10 + [1.0] * 30])
    difference = paired_difference(a, b)
    half = 1.96 * np.sqrt(0.45 / 99)
    assert difference.mean == pytest.approx(0.5)
    assert difference.low == pytest.approx(0.5 - half, abs=0.01)
    assert difference.high == pytest.approx(0.5 + half, abs=0.01)
    assert difference.p_value == 1 / 10_001  # never 0
    assert difference.found


def test_swapping_the_arms_changes_the_sign() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 40)), rng.random((2, 40))
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.low == pytest.approx(-backward.high)
    assert forward.p_value == pytest.approx(backward.p_value)


def test_pairing_problems_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    hardness = rng.random(200)
    a = (rng.random(200) < 0.9 * hardness + 0.05)[None].astype(float)
    b = (a[0] * (rng.random(200) < 0.9))[None]
    paired, broken = paired_difference(a, b), paired_difference(a, b[:, rng.permutation(200)])
    assert paired.high - paired.low < 0.6 * (broken.high - broken.low)
    assert paired.mean == pytest.approx(broken.mean)


def test_pairing_seeds_narrows_the_interval() -> None:
    rng = np.random.default_rng(1)
    lucky = 0.1 * rng.normal(size=(4, 1))
    b = 0.5 + lucky + 0.05 * rng.normal(size=(4, 100))
    a = b + 0.03 + 0.05 * rng.normal(size=(4, 100))
    paired, unpaired = paired_difference(a, b), paired_difference(a, b, paired_seeds=False)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)
    assert paired.found
    assert not unpaired.found


def test_sides_may_differ_in_seeds() -> None:
    rng = np.random.default_rng(2)
    difference = paired_difference(rng.random((3, 60)) + 0.5, rng.random((1, 60)))
    assert difference.seeds == 1
    assert difference.low < difference.mean < difference.high
    with pytest.raises(UserError, match="cannot be paired"):
        paired_difference(np.ones((2, 3)), np.ones((1, 3)), paired_seeds=True)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((1, 3)), np.ones((1, 4)), "same problems"),
        (np.ones((1, 1)), np.ones((1, 1)), "one problem"),
        (np.ones(3), np.ones(3), "scores of shape"),
        (np.full((1, 3), np.nan), np.ones((1, 3)), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        paired_difference(a, b)


def coverage(seeds: int, *, between_problems: float, between_seeds: float, answers: float, effect: float) -> float:
    """The share of simulated experiments of 80 problems whose 95% interval holds the true effect."""
    rng, held, experiments = np.random.default_rng(0), 0, 300
    for _ in range(experiments):
        gain = effect + between_problems * rng.normal(size=(1, 80)) + between_seeds * rng.normal(size=(seeds, 1))
        gain = gain + answers * rng.normal(size=(seeds, 80))
        difference = paired_difference(gain, np.zeros_like(gain), resamples=600, seed=rng)
        held += difference.low <= effect <= difference.high
    return held / experiments


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize(("problems", "answers"), [(0.3, 0.0), (0.3, 0.5), (0.0, 0.5)])
def test_the_interval_covers_as_often_as_it_says(seeds: int, problems: float, answers: float) -> None:
    held = coverage(seeds, between_problems=problems, between_seeds=0.0, answers=answers, effect=0.1)
    assert 0.91 <= held <= 0.99


def test_few_seeds_that_differ_much_are_covered_less_often_than_said() -> None:
    """The limit stated at the head of the module: kept as a test so that the words stay true."""
    noise = {"between_problems": 0.3, "between_seeds": 0.1, "answers": 0.1, "effect": 0.1}
    two, five = coverage(2, **noise), coverage(5, **noise)
    assert 0.65 <= two <= 0.85
    assert two < five <= 0.96


def test_p_values_are_uniform_where_there_is_nothing_to_find() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        both = rng.random((2, 80))
        scores = (rng.random((2, 2, 80)) < both.mean(axis=0)).astype(float)
        p_values.append(paired_difference(scores[0], scores[1], resamples=400, seed=rng).p_value)
    assert np.mean(np.array(p_values) < 0.05) < 0.09
    assert 0.4 < np.mean(p_values) < 0.6


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(3, 0, 1 / 8), (5, 0, 1 / 32), (2, 1, 5 / 8), (4, 4, 1.0), (0, 0, 1.0)]
)
def test_mcnemars_mid_p_by_hand(wins: int, losses: int, p: float) -> None:
    """2·(P(more extreme) + ½·P(as extreme)): of 3 problems 3 and none 2·½·⅛, 2 and 1 2·(⅛ + ½·⅜)."""
    assert mcnemar(wins, losses) == pytest.approx(p) == mcnemar(losses, wins)


def test_mcnemars_mid_p_of_many_is_the_normal_one() -> None:
    for wins, losses in ((1000, 900), (5100, 5000), (30_000, 30_400)):
        z = abs(wins - losses) / math.sqrt(wins + losses)
        assert mcnemar(wins, losses) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("problems", [5, 8, 20])
def test_one_model_against_another_on_few_problems_is_found_different_no_more_often_than_said(
    problems: int, graded: bool
) -> None:
    rng, found, experiments = np.random.default_rng(problems), 0, 600
    for _ in range(experiments):
        both = rng.random(problems)
        scores = (rng.random((2, 1, problems)) < both).astype(float)
        scores = scores * rng.random(scores.shape) if graded else scores
        found += paired_difference(*scores, resamples=400, seed=rng).found
    assert found / experiments < 0.075


@pytest.mark.parametrize("problems", [5, 12, 64])
def test_interval_and_p_never_contradict_each_other_and_stay_in_range(problems: int) -> None:
    for wins in range(problems + 1):
        for losses in range(0, problems + 1 - wins, 1 + problems // 10):
            a, b = np.zeros((1, problems)), np.zeros((1, problems))
            a[0, :wins] = b[0, wins : wins + losses] = 1.0
            difference = paired_difference(a, b, resamples=300)
            assert difference.found == (difference.p_value < 0.05)
            assert -1 <= difference.low <= difference.mean <= difference.high <= 1


def test_winning_more_problems_is_never_less_of_a_finding() -> None:
    p = []
    for wins in range(1, 9):
        a = np.zeros((1, 8))
        a[0, :wins] = 1.0
        p.append(paired_difference(a, np.zeros((1, 8))).p_value)
    assert p == sorted(p, reverse=True)
    assert p[3] > 0.05 > p[5]


def test_one_problem_that_differs_is_no_finding() -> None:
    """The percentiles of a single discordant problem leave 0 out; the p-value does not, and it has the last word."""
    a, b = np.zeros((2, 16)), np.zeros((2, 16))
    a[0, 3] = 1.0
    found = paired_difference(a, b)
    assert found.p_value > 0.05
    assert found.low <= 0.0 <= found.high
    assert not found.found
