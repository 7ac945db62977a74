"""Losses that compare the answers of a group: by hand, and their gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.config import RlConfig, RolloutConfig
from remask.diffusion.likelihood import Likelihood
from remask.errors import UserError
from remask.rl.in_groups import from_group, group_means, to_group
from remask.rl.policy_loss import policy_terms
from remask.rl.presets import PRESETS, resolve
from remask.rl.settings import check_groups_are_whole


def likelihood(token: Tensor) -> Likelihood:
    return Likelihood(token, token.sum(-1), torch.full((len(token),), token.shape[1]))


def test_means_of_groups_do_not_depend_on_micro_batches() -> None:
    """Groups of 1, 3 (a row of it not counted) and 6, in two micro-batches; the second group has nothing."""
    own = [torch.tensor([1.0, 3.0, 100.0]), torch.tensor([6.0])]
    group, counted = [torch.tensor([0, 2, 2]), torch.tensor([0])], [torch.tensor([1, 1, 0]) > 0, torch.tensor([True])]
    assert group_means(own, group, counted, 3).tolist() == [3.5, 0.0, 3.0]
    doubled = group_means(own, group, counted, 3, summed=lambda total: total + total)
    assert doubled.tolist() == [3.5, 0.0, 3.0]


def test_weights_are_capped_and_one_on_average() -> None:
    """Ratios e, 1 and e² (capped at 5) of answers of two tokens at level sequence."""
    objective, shares = resolve("stabledrl"), torch.ones(3, 2)
    old = torch.zeros(3, 2)
    new = old + torch.tensor([[1.0], [0.0], [2.0]])
    own = to_group(objective, likelihood(new), likelihood(old), shares)
    assert own.tolist() == pytest.approx([math.e, 1, 5])
    weight = from_group(objective, own, own.mean().expand(3))
    assert weight.mean().item() == pytest.approx(1)
    terms = policy_terms(
        objective, torch.tensor([[1.0], [-2.0], [0.5]]), likelihood(new - 1), None, None, shares, weight
    )
    expected = [-w * a * value for w, a, value in zip(weight.tolist(), (1, -2, 0.5), (0, -1, 1), strict=True)]
    assert terms.row.tolist() == pytest.approx(expected)


def test_where_nothing_has_moved_every_weight_is_one() -> None:
    objective, value = resolve("stabledrl"), likelihood(-torch.rand(4, 3))
    own = to_group(objective, value, value, torch.ones(4, 3))
    assert (
        from_group(
            objective, own, group_means([own], [torch.zeros(4).long()], [torch.ones(4) > 0], 1)[[0] * 4]
        ).tolist()
        == [1] * 4
    )


@pytest.mark.parametrize("level", ["sequence", "whole"])
def test_trajectory_balance_by_hand(level: str) -> None:
    """d = 1 and −3 of two tokens in all, A = ±1, scale 2: the centre is −1; at level sequence all d are halves."""
    objective = replace(PRESETS["trafl"], level=level, reward_scale=2.0)  # type: ignore[arg-type]
    part, shares = (0.5 if level == "sequence" else 1.0), torch.ones(2, 2)
    reference = likelihood(torch.full((2, 2), -1.0))
    new = likelihood(torch.tensor([[-0.5, -0.5], [-3.0, -2.0]]))
    own = to_group(objective, new, reference, shares)
    assert own.tolist() == pytest.approx([part, -3 * part])
    mean = from_group(objective, own, own.mean().expand(2))
    row = policy_terms(objective, torch.tensor([[1.0], [-1.0]]), new, None, reference, shares, mean).row
    assert row.tolist() == pytest.approx([(2 * part - 2) ** 2, (-2 * part + 2) ** 2])


def test_its_gradient_is_that_of_the_variance_in_the_group() -> None:
    """VarGrad: with a centre without gradient it is Σ (e − mean e)², e = d − scale·r, differentiated in full."""
    objective = resolve("trafl", reward_scale=0.7)
    generator = torch.Generator().manual_seed(0)
    token, reference = (-torch.rand(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    reward = torch.rand(5, generator=generator, dtype=torch.float64)
    token.requires_grad_()
    new, old, shares = likelihood(token), likelihood(reference), torch.ones(5, 3, dtype=torch.float64)
    own = to_group(objective, likelihood(token.detach()), old, shares)
    advantage = (reward - reward.mean())[:, None]
    loss = policy_terms(objective, advantage, new, None, old, shares, own.mean().expand(5)).row.sum()
    error = (token - reference).mean(-1) - 0.7 * reward
    whole = (error - error.mean()).square().sum()
    assert loss.item() == pytest.approx(whole.item())
    (found,), (expected,) = torch.autograd.grad(loss, token), torch.autograd.grad(whole, token)
    assert torch.allclose(found, expected)


def test_it_is_at_rest_where_the_policy_is_the_tilted_reference() -> None:
    """log p = log p_ref + scale·r − log Z, whatever log Z."""
    objective = resolve("trajectory-balance")
    reward = torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64)
    reference = torch.tensor([[-2.0], [-30.0], [-9.0]], dtype=torch.float64)
    token = (reference + objective.reward_scale * reward[:, None] - 4).requires_grad_()
    shares = torch.ones(3, 1, dtype=torch.float64)
    own = to_group(objective, likelihood(token.detach()), likelihood(reference), shares)
    advantage = (reward - reward.mean())[:, None]
    loss = policy_terms(
        objective, advantage, likelihood(token), None, likelihood(reference), shares, own.mean().expand(3)
    ).row.sum()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, token)[0].abs().max() < 1e-6


def test_the_anchor_may_be_the_policy_that_wrote_the_answers() -> None:
    objective = resolve("trafl", kl_anchor="old")
    assert (objective.uses_reference, objective.uses_old) == (False, True)
    value, shares = likelihood(torch.tensor([[-1.0, -2.0]])), torch.ones(1, 2)
    assert policy_terms(objective, torch.ones(1, 1), value, None, None, shares).row.item() == 1
    moved = likelihood(value.token - 0.5)
    assert policy_terms(objective, torch.ones(1, 1), value, moved, None, shares).row.item() == pytest.approx(0.25)
    assert (resolve("trafl").uses_reference, resolve("trafl").uses_old) == (True, False)


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("stabledrl", {"level": "token"}, "loss = self_normalised at level token: it is of whole answers"),
        ("spg", {"loss": "square"}, "loss = square at level none"),
        ("stabledrl", {"dual_clip": 3.0}, "dual_clip = 3.0 where no ratio is clipped"),
        ("spg", {"dual_clip": 3.0}, "level none, loss clip.*set choices.dual_clip to 0"),
        ("stabledrl", {"weight_cap": 0.0}, "weight_cap = 0.0"),
        ("trafl", {"reward_scale": math.inf}, "reward_scale = inf"),
        ("trafl", {"reward_scale": -1.0}, "reward_scale = -1.0"),
    ],
)
def test_choices_that_do_not_fit(name: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(name, **choices)


def test_groups_may_not_be_parted() -> None:
    config = RlConfig(rollout=RolloutConfig(minibatches=2))
    with pytest.raises(UserError, match=r"answers of a group.*set rollout\.minibatches to 1"):
        check_groups_are_whole(config, resolve("trafl"))
    check_groups_are_whole(config, resolve("espo"))
