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
from remask.diffusion.reader import Reader
from remask.rl.policy_loss import PolicyObjective

Draws = Sequence[Sequence[View]]


def draws_of(objective: PolicyObjective, canvas: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
    """What the model is shown, draw by draw, to score the canvas by the objective's likelihood."""
    if objective.likelihood == "mean_field":
        return [mean_field_views(canvas, n, mask_id, prompt_rate=objective.prompt_mask) for n in noise]
    return [VIEWS[objective.likelihood](canvas, n, mask_id) for n in noise]


def draw_by_draw(
    reader: Reader,
    canvas: Canvas,
    draws: Draws,
    loss_of: Callable[[Likelihood], Tensor],
    *,
    backward: Callable[[Tensor], None],
    known: Float[Tensor, "B W"] | None = None,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """The loss of a likelihood that is a mean over draws, with one draw's activations in memory at a time.

    As the likelihood is a sum over draws, the loss's gradient is that of Σ_d ∂loss/∂ℓ · ℓ_d, and ∂loss/∂ℓ needs them
    all. Where the likelihood is `known` (the policy has not moved since it was read) each draw is read once, with its
    gradient. Else all but the last are read without gradient before; the last one's gradient is taken first, and it is
    not read again. All gradients but one are handed to `backward` here; that one is returned with the loss's value for
    the caller to do so.
    """

    def read(views: Sequence[View], share: Tensor | None) -> Tensor:
        return token_log_p(reader, canvas, views, share)

    if known is None and len(draws) <= 1:
        return loss_of(estimate(reader, canvas, draws))
    left, first = list(draws), None
    with no_sync():
        if known is None:
            with torch.no_grad():
                others = sum(read(views, None) for views in draws[:-1])  # in the order of `estimate`: to the last bit
            first = read(left.pop(), None)
            known = (others + first.detach()) / len(draws)
        leaf = known.detach().clone().requires_grad_()
        loss = loss_of(likelihood(leaf, canvas))
        (weight,) = torch.autograd.grad(loss, leaf)
        share = weight / len(draws)
        if first is not None:
            backward((first * share).sum())
            del first
    for views in left[:-1]:
        with no_sync():
            backward((read(views, share) * share).sum())
    last = (read(left[-1], share) * share).sum()
    return last + (loss - last).detach()
