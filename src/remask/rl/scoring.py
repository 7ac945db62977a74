"""Likelihoods of a micro-batch, and the gradient of a loss of them in the memory of one draw.

Shapes: B rows, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import (
    VIEWS,
    Likelihood,
    View,
    estimate,
    likelihood,
    mean_field_views,
    token_log_p,
)
from remask.diffusion.noise import Noise
from remask.diffusion.predict import Predict
from remask.rl.policy_loss import PolicyObjective

Draws = Sequence[Sequence[View]]


def draws_of(objective: PolicyObjective, canvas: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
    """What the model is shown, draw by draw, to score the canvas by the objective's likelihood."""
    if objective.likelihood == "mean_field":
        return [mean_field_views(canvas, n, mask_id, prompt_rate=objective.prompt_mask) for n in noise]
    return [VIEWS[objective.likelihood](canvas, n, mask_id) for n in noise]


def draw_by_draw(
    predict: Predict,
    canvas: Canvas,
    draws: Draws,
    loss_of: Callable[[Likelihood], Tensor],
    *,
    backward: Callable[[Tensor], None],
    known: Float[Tensor, "B W"] | None = None,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """The loss of a likelihood that is a mean over draws, with one draw's activations in memory at a time.

    The likelihood is read without gradient first (or is `known`: the policy has not moved since it was read). As it is
    a sum over draws, the loss's gradient is then that of Σ_d ∂loss/∂ℓ · ℓ_d, which is taken draw by draw: all but the
    last are handed to `backward` here, the last is returned with the loss's value for the caller to do so.
    """
    if known is None:
        with torch.no_grad():
            known = estimate(predict, canvas, draws).token
    leaf = known.detach().clone().requires_grad_()
    loss = loss_of(likelihood(leaf, canvas))
    (weight,) = torch.autograd.grad(loss, leaf)
    share = weight / len(draws)
    for views in draws[:-1]:
        with no_sync():
            backward((token_log_p(predict, canvas, views, share) * share).sum())
    last = (token_log_p(predict, canvas, draws[-1], share) * share).sum()
    return last + (loss - last).detach()
