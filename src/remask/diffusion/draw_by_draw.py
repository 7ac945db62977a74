"""The gradient of a loss of a likelihood in the memory of one draw.

Shapes: B rows, W width, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import Combine, Draws, Likelihood, View, estimate, likelihood, mean, token_log_p
from remask.diffusion.reader import Reader


def draw_by_draw(
    reader: Reader,
    canvas: Canvas,
    draws: Draws,
    loss_of: Callable[[Likelihood], Tensor],
    *,
    backward: Callable[[Tensor], None],
    combine: Combine = mean,
    known: Sequence[Float[Tensor, "B W"]] | None = None,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """Return the loss of a likelihood that combines draws, keeping one draw's activations in memory at a time.

    As the likelihood is a function of the draws' values v_d, the loss's gradient is that of Σ_d ∂loss/∂v_d · v_d, and
    ∂loss/∂v_d needs them all. Where the values are given in `known` (the policy has not moved since they were read),
    each draw is read once, with its gradient. Otherwise all draws but the last are first read without gradient; the
    last one's gradient is taken first, and it is not read again. This function hands all gradients but one to
    `backward`; that one is returned with the loss's value for the caller to do so.
    """

    def read(views: Sequence[View], share: Tensor | None) -> Tensor:
        return token_log_p(reader, canvas, views, share)

    if known is None and len(draws) <= 1:
        return loss_of(estimate(reader, canvas, draws, combine))
    left, first = list(draws), None
    with no_sync():
        if known is None:
            with torch.no_grad():
                known = [read(views, None) for views in draws[:-1]]
            first = read(left.pop(), None)
            known = [*known, first.detach()]
        leaves = [value.detach().clone().requires_grad_() for value in known]
        loss = loss_of(likelihood(combine(leaves, draws), canvas))
        shares = torch.autograd.grad(loss, leaves)
        if first is not None:
            backward((first * shares[-1]).sum())
            del first
    for views, share in zip(left[:-1], shares, strict=False):
        with no_sync():
            backward((read(views, share) * share).sum())
    share = shares[len(left) - 1]
    last = (read(left[-1], share) * share).sum()
    return last + (loss - last).detach()
