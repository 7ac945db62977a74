"""The angle between two means that are known from noisy draws, by hand and against what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from remask.analysis.noisy_means import Figure, Moments, Products, figure
from remask.errors import UserError


def products(g: np.ndarray, h: np.ndarray, *, paired: bool = True) -> Products:
    return Products(g @ g.T, h @ h.T, g @ h.T, paired)


def test_moments_of_two_draws_are_what_is_worked_out_by_hand() -> None:
    """g = (3, 0), (1, 2) and h = (1, 1), (2, 0): of the pairs r ≠ s, g_1·h_2 = 6 and g_2·h_1 = 3."""
    g, h = np.array([[3.0, 0], [1, 2]]), np.array([[1.0, 1], [2, 0]])
    once = np.ones((1, 2), dtype=np.int64)
    found = Moments.of(products(g, h), once, once)
    assert found.inner[0] == 4.5  # (6 + 3)/2; the means as they are give (2, 1)·(1.5, .5) = 3.5
    assert (found.own[0], found.other[0]) == (3, 2)  # g_1·g_2, h_1·h_2
    assert (found.own_square[0], found.other_square[0]) == (7, 3)  # (9 + 5)/2, (2 + 4)/2
    assert found.cosine()[0] == pytest.approx(4.5 / math.sqrt(6))
    assert found.relative()[0] == pytest.approx(4 / 3)
    assert found.compute()[0] == pytest.approx((4 / 3) / (1 / 2))
    assert found.one_draw()[0] == pytest.approx(4.5 / math.sqrt(2 * 7))
    apart = Moments.of(products(g, h, paired=False), once, once)
    assert apart.inner[0] == 3.5  # all four pairs


def test_copies_of_a_draw_in_a_resample_make_no_pair() -> None:
    """(3, 0) twice and (1, 2) once: pairs of different draws are 2·2 of 3; one draw alone has none."""
    g = np.array([[3.0, 0], [1, 2]])
    counts = np.array([[2, 1], [3, 0]])
    found = Moments.of(products(g, g), counts, counts)
    assert found.own[0] == 3
    assert found.own_square[0] == pytest.approx((2 * 9 + 5) / 3)
    assert np.isnan(found.own[1])


def noisy(random: np.random.Generator, count: int, draws: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Draws [count, draws, 12] about means of cosine 0.6, with noise three times as long, most of it in common."""
    mu, nu = np.zeros(12), np.zeros(12)
    mu[0], nu[0], nu[1] = 1.0, 0.6, 0.8
    common = random.normal(size=(count, draws, 12)) * 0.8
    own, other = (random.normal(size=(count, draws, 12)) * 0.4 for _ in range(2))
    return mu + common + own, nu + common + other


def test_the_corrected_moments_are_right_on_the_mean_and_the_plain_ones_are_not() -> None:
    """Over 400 samples: within five standard errors of μ·ν = 0.6 and ‖μ‖² = 1."""
    once = np.ones((1, 24), dtype=np.int64)
    samples = list(zip(*noisy(np.random.default_rng(3), 400), strict=True))
    found = [Moments.of(products(g, h), once, once) for g, h in samples]
    for values, truth in (([m.inner[0] for m in found], 0.6), ([m.own[0] for m in found], 1.0)):
        assert abs(np.mean(values) - truth) < 5 * np.std(values) / 20
    plain = [g.mean(0) @ h.mean(0) for g, h in samples]
    assert np.mean(plain) - 0.6 > 5 * np.std(plain) / 20


def test_the_interval_holds_the_cosine_about_as_often_as_it_says() -> None:
    """Of 100 samples: 95 are expected, and 86 or fewer have a chance below 1 in 1,000."""
    samples = zip(*noisy(np.random.default_rng(7), 100, 48), strict=True)
    held = [figure(products(g, h), Moments.cosine) for g, h in samples]
    covered = sum(f.low is not None and f.high is not None and f.low <= 0.6 <= f.high for f in held)
    assert covered > 86


def test_a_mean_that_is_lost_in_the_noise_has_no_cosine() -> None:
    opposite = np.array([[1.0, 0], [-1, 0]])
    assert figure(products(opposite, opposite), Moments.cosine) == Figure(None)
    faint = np.array([[1.0, 0], [-0.8, 0], [1, 0], [1, 0]])  # what is left is unknown in every third resample or so
    found = figure(products(faint, faint), Moments.relative)
    assert found.value is not None
    assert found.low is None


def test_one_draw_is_too_few() -> None:
    with pytest.raises(UserError, match="1 draws are too few"):
        products(np.ones((1, 2)), np.ones((1, 2)))
