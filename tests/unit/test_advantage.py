"""Advantages: numbers by hand, equal rewards, missing rewards."""

from __future__ import annotations

import math

import pytest
import torch

from remask.rl.advantage import ADVANTAGES, advantages, informative

NAN = math.nan
NAMES = list(ADVANTAGES)


def of(name: str, *rewards: float) -> list[float]:
    return advantages(name, torch.tensor([rewards], dtype=torch.float32))[0].tolist()  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Rewards 0, 1, 2: mean 1, std 1 with G − 1; the others' means are 1.5, 1, 0.5."""
    assert of("mean", 0, 1, 2) == pytest.approx([-1, 0, 1])
    assert of("normalised", 0, 1, 2) == pytest.approx([-1, 0, 1])
    assert of("normalised", 0, 2, 4) == pytest.approx([-1, 0, 1])
    assert of("normalised_population", 0, 2, 4) == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert of("leave_one_out", 0, 1, 2) == pytest.approx([-1.5, 0, 1.5])


def test_wd1s_weights_by_hand() -> None:
    """Two answers, A = ±½: softmax(A) = (1/(1+e), e/(1+e)), and the weights are ∓(e−1)/(e+1)."""
    share = (math.e - 1) / (math.e + 1)
    assert of("softmax", 0, 1) == pytest.approx([-share, share])


@pytest.mark.parametrize("name", NAMES)
def test_a_group_without_spread_carries_nothing(name: str) -> None:
    assert of(name, 0.3, 0.3, 0.3) == [0, 0, 0]
    assert of(name, 0.0) == [0]
    assert not informative(torch.full((1, 4), 0.1)).any()


@pytest.mark.parametrize("name", NAMES)
def test_advantages_of_a_group_add_up_to_nothing(name: str) -> None:
    rewards = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    assert advantages(name, rewards).sum(-1).abs().max() < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_completion_without_reward_takes_no_part(name: str) -> None:
    with_gap, without = of(name, 0.0, NAN, 1.0, 0.4), of(name, 0.0, 1.0, 0.4)
    assert with_gap[1] == 0
    assert [with_gap[0], *with_gap[2:]] == pytest.approx(without)


@pytest.mark.parametrize("name", NAMES)
def test_one_reward_is_no_comparison(name: str) -> None:
    assert of(name, NAN, 1.0, NAN) == [0, 0, 0]
    assert of(name, NAN, NAN) == [0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_groups_do_not_meet(name: str) -> None:
    rewards = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.9, 0.9]])
    both = advantages(name, rewards)  # type: ignore[arg-type]
    assert torch.equal(both[1], advantages(name, rewards[1:])[0])  # type: ignore[arg-type]
