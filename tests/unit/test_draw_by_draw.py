"""The gradient of a loss of likelihoods, draw by draw: the whole one's, in the memory of one draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.likelihood import Likelihood, draw_values, estimate
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader
from remask.diffusion.times import MIN_TIME
from remask.rl.policy_loss import policy_terms
from remask.rl.presets import PRESETS, resolve

ROWS, PROMPT, CANVAS = 3, 4, 12


def batch(seed: int = 0) -> Canvas:
    ids = torch.randint(10, 200, (ROWS, PROMPT + CANVAS), generator=torch.Generator().manual_seed(seed))
    response = torch.zeros(ids.shape, dtype=torch.bool)
    response[:, PROMPT:] = True
    written = torch.where(response, torch.arange(PROMPT + CANVAS) % 3, -1)
    return Canvas(ids, torch.ones_like(response), response, response, written)


def noise(draws: int) -> list[Noise]:
    generator = torch.Generator().manual_seed(7)
    return [
        Noise.at(
            MIN_TIME + (1 - MIN_TIME) * torch.rand(ROWS, generator=generator),
            torch.rand(ROWS, PROMPT + CANVAS, generator=generator),
        )
        for _ in range(draws)
    ]


class Kept:
    """A tensor that waits for a backward pass, counted until it is let go."""

    def __init__(self, tensor: Tensor, peak: Peak) -> None:
        self.tensor, self.peak = tensor, peak
        peak.add(tensor.nbytes)

    def __del__(self) -> None:
        self.peak.add(-self.tensor.nbytes)


class Peak:
    """The most bytes of activations that wait for a backward pass at any time."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: Kept(t, self), lambda kept: kept.tensor)

    def __enter__(self) -> Peak:
        self.hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.__exit__(None, None, None)

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def gradients(
    model: Any, name: str, draws: int, *, by_draw: bool, known: bool = False, **choices: Any
) -> tuple[float, Tensor, int]:
    """(loss, gradient of all weights, peak of activations) of a policy that has moved since its rollout."""
    one_draw = PRESETS[name].likelihood in ("mean_field", "trajectory", "left_to_right", "pseudo")
    objective = resolve(name, **choices) if one_draw else resolve(name, draws=draws, **choices)
    canvas = batch()
    views = objective.estimator.draws(canvas, noise(objective.draws), model.config.mask_token_id)
    advantage = torch.tensor([1.0, -0.5, 0.25])
    combine = objective.combine(advantage[:, None].expand(canvas.ids.shape))
    with torch.no_grad():
        value = estimate(model, canvas, views, combine)
    old = Likelihood(value.token * 1.01, value.sequence * 1.01, value.scored)

    def loss_of(current: Likelihood) -> Tensor:
        return policy_terms(objective, advantage[:, None], current, old, old, canvas.corruptible).row.mean()

    model.zero_grad()
    with Peak() as memory:
        if by_draw:
            loss = draw_by_draw(
                ModelReader(model),
                canvas,
                views,
                loss_of,
                backward=lambda part: part.backward(),
                combine=combine,
                known=draw_values(model, canvas, views) if known else None,
            )
        else:
            loss = loss_of(estimate(model, canvas, views, combine))
        loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), memory.peak


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_loss_and_gradient_are_the_whole_ones(name: str, known: bool, random_model: Any) -> None:
    loss, gradient, _ = gradients(random_model, name, 3, by_draw=False)
    parted, parted_gradient, _ = gradients(random_model, name, 3, by_draw=True, known=known)
    assert parted == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(parted_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["espo", "spg", "stabledrl", "ebpo", "gdpo"])
def test_memory_does_not_grow_with_the_draws(name: str, random_model: Any) -> None:
    two, eight = (gradients(random_model, name, draws, by_draw=True)[2] for draws in (2, 8))
    whole = gradients(random_model, name, 8, by_draw=False)[2]
    assert eight < 1.3 * two
    assert whole > 5 * two


def test_memory_does_not_grow_with_the_views_of_a_trajectory(random_model: Any) -> None:
    """Twelve views of a token against one of twelve."""
    one, twelve = (gradients(random_model, "justgrpo", 1, by_draw=True, steps_together=run)[2] for run in (12, 1))
    whole = gradients(random_model, "justgrpo", 1, by_draw=False)[2]
    assert twelve < 1.3 * one
    assert whole > 8 * one


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("known", [True, False])
def test_each_draw_is_read_once_where_the_likelihood_is_known_and_else_all_but_one_twice(
    draws: int, known: bool, random_model: Any
) -> None:
    objective, canvas = resolve("espo", draws=draws), batch()
    views = objective.estimator.draws(canvas, noise(draws), random_model.config.mask_token_id)
    calls = []

    class Counted(ModelReader):
        def call(self, *arguments: Any, **wanted: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return super().call(*arguments, **wanted)

    draw_by_draw(
        Counted(random_model),
        canvas,
        views,
        lambda current: current.sequence.square().sum(),
        backward=Tensor.backward,
        known=[torch.zeros(canvas.ids.shape)] * draws if known else None,
    ).backward()
    again = 0 if known else draws - 1
    assert (calls.count(True), calls.count(False)) == (draws, again)
