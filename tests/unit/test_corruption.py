"""Masking rates and masks: three tokens by hand, then what holds for any numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from remask.diffusion.corruption import (
    apply_mask,
    bernoulli_mask,
    exact_count_mask,
    importance_rate,
    lift_mask,
    lift_rule,
    lift_superset_rate,
    lowest,
    uniform_rate,
)
from remask.diffusion.times import MIN_TIME


def everywhere(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


def test_uniform_rate_by_hand() -> None:
    response = torch.tensor([[False, True, True], [False, False, True]])
    rate = uniform_rate(torch.tensor([[0.25], [0.5]]), response)
    assert rate.tolist() == [[0.0, 0.25, 0.25], [0.0, 0.0, 0.5]]


def test_importance_rate_by_hand() -> None:
    """t = 0.75: 1 − 0.25^½ = 0.5, 1 − 0.25 = 0.75, 1 − 0.25^1.5 = 0.875; t = 0.5, twice the mean: 1 − 0.5² = 0.75."""
    ratio = torch.tensor([[0.5, 1.0, 1.5], [2.0, 1.0, 0.0]])
    rate = importance_rate(torch.tensor([[0.75], [0.5]]), ratio, everywhere(2, 3))
    assert rate[0].tolist() == pytest.approx([0.5, 0.75, 0.875], abs=1e-6)
    assert rate[1].tolist() == pytest.approx([0.75, 0.5, MIN_TIME], abs=1e-6)


@given(t=st.floats(MIN_TIME, 1))
@settings(deadline=None)
def test_average_importance_gives_back_the_uniform_rate_to_the_last_bit(t: float) -> None:
    time = torch.tensor([[max(t, 1e-3)]])
    rate = importance_rate(time, torch.ones(1, 5), everywhere(1, 5))
    assert torch.equal(rate, uniform_rate(time, everywhere(1, 5)))


@given(t=st.floats(MIN_TIME, 1), ratio=st.floats(0, 100))
@settings(deadline=None)
def test_rates_stay_between_epsilon_and_one_and_outside_the_response_zero(t: float, ratio: float) -> None:
    rate = importance_rate(torch.tensor([[t]]), torch.tensor([[ratio, ratio]]), torch.tensor([[False, True]]))
    assert rate[0, 0] == 0
    assert torch.tensor(MIN_TIME) <= rate[0, 1] <= 1


def test_more_important_tokens_are_visited_more() -> None:
    rate = importance_rate(torch.tensor([[0.4]]), torch.linspace(0.05, 4, 40)[None], everywhere(1, 40))[0]
    assert (rate.diff() > 0).all()


def test_bernoulli_mask_by_hand() -> None:
    u = torch.tensor([[0.1, 0.3, 0.0, 0.29]])
    response = torch.tensor([[True, True, False, True]])
    mask = bernoulli_mask(u, torch.full((1, 4), 0.3), response)
    assert mask.tolist() == [[True, False, False, True]]


def test_the_expected_mask_over_its_rate_is_one() -> None:
    """Over every u on a fine grid, m/p averages to 1 whatever p: no token weighs more than another."""
    rate = torch.tensor([[0.002, 0.1, 0.5, 0.875, 1.0]])
    grid = ((torch.arange(2000) + 0.5) / 2000)[:, None].expand(2000, 5)
    mask = bernoulli_mask(grid.contiguous(), rate.expand(2000, 5), everywhere(2000, 5))
    assert (mask.float().mean(0) / rate[0]).tolist() == pytest.approx([1.0] * 5, abs=1e-5)


def test_exact_count_mask_by_hand() -> None:
    u = torch.tensor([[0.0, 0.9, 0.2, 0.5], [0.4, 0.3, 0.2, 0.1]])
    response = torch.tensor([[False, True, True, True], [True, True, True, True]])
    mask = exact_count_mask(u, torch.tensor([2, 1]), response)
    assert mask.tolist() == [[False, False, True, True], [False, False, False, True]]


@given(size=st.integers(1, 12), count=st.integers(0, 15), seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_exact_count_masks_that_many_of_the_smallest(size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(1, 16, generator=generator)
    response = torch.zeros(1, 16, dtype=torch.bool)
    response[0, torch.randperm(16, generator=generator)[:size]] = True
    mask = exact_count_mask(u, torch.tensor([count]), response)
    assert mask.sum() == min(count, size)
    assert not (mask & ~response).any()
    left = u[response & ~mask]
    if mask.any() and len(left):
        assert u[mask].max() < left.min()


def test_ties_go_to_the_left() -> None:
    chosen = lowest(torch.zeros(1, 5), torch.tensor([2]), torch.tensor([[False, True, True, True, True]]))
    assert chosen.tolist() == [[False, True, True, False, False]]


def test_apply_mask_writes_the_mask_and_leaves_its_input() -> None:
    ids = torch.tensor([[4, 5, 6]])
    noised = apply_mask(ids, torch.tensor([[False, True, False]]), 9)
    assert noised.tolist() == [[4, 9, 6]]
    assert ids.tolist() == [[4, 5, 6]]


@pytest.mark.parametrize(
    ("t", "s", "rate"),
    [
        (0.5, 0.0, 0.6),  # t + 0.1
        (0.5, 0.5, 0.8),  # t + 0.1 + 0.5·(0.5 − 0.1)
        (0.5, 1.0, 1.0),
        (0.95, 0.5, 0.975),  # 1 − t ≤ 0.1: lo = 0
        (1.0, 0.5, 1.0),
    ],
)
def test_lift_superset_rate_by_hand(t: float, s: float, rate: float) -> None:
    assert lift_superset_rate(torch.tensor([t]), torch.tensor([s])).item() == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize(
    ("t", "three", "two"),
    [
        (0.9, "easy", "easy"),  # 0.9, 0.1, 0.27
        (0.1, "hard", "hard"),  # 0.1, 0.9, 0.27
        (0.5, "plain", "easy"),  # 0.5, 0.5, 0.75
        (0.7, "easy", "easy"),  # 0.7, 0.3, 0.63
        (0.6, "plain", "easy"),  # 0.6, 0.4, 0.72
        (0.4, "plain", "hard"),  # 0.4, 0.6, 0.72
    ],
)
def test_lift_rule_by_hand(t: float, three: str, two: str) -> None:
    assert lift_rule(t, ("easy", "hard", "plain")) == three
    assert lift_rule(t, ("easy", "hard")) == two


def test_lift_keeps_the_easy_the_hard_or_any() -> None:
    """n = 4 masked, t/(t + ρ) = 0.5/1: k = 2 of them stay masked; the fifth token was never masked."""
    superset = torch.tensor([[True, True, True, True, False]] * 3)
    nll = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0]] * 3)
    u = torch.tensor([[0.3, 0.4, 0.1, 0.2, 0.0]] * 3)
    half, one = torch.full((3,), 0.5), torch.ones(3)
    kept = lift_mask(superset, nll, u, half, one, ["easy", "hard", "plain"])
    assert kept.tolist() == [
        [False, True, False, True, False],
        [True, False, True, False, False],
        [False, False, True, True, False],
    ]


@pytest.mark.parametrize(
    ("n", "t", "rate", "kept"),
    [(3, 0.5, 0.75, 2), (6, 0.1, 0.9, 1), (6, 0.3, 1.0, 2), (1, 0.1, 0.9, 0), (5, 1.0, 1.0, 5), (0, 0.5, 0.8, 0)],
)
def test_lift_count_by_hand(n: int, t: float, rate: float, kept: int) -> None:
    """k = round(n·t/(t + ρ)): 3·⅔ = 2; 6/9 → 1; 1.8 → 2; 0.11 → 0."""
    superset = (torch.arange(6) < n)[None]
    nll = torch.arange(6.0)[None]
    mask = lift_mask(superset, nll, nll / 10, torch.tensor([t]), torch.tensor([rate]), ["easy"])
    assert mask.sum() == kept
    assert not (mask & ~superset).any()


def test_annotated_shapes_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        uniform_rate(torch.rand(3, 1), everywhere(2, 4))
