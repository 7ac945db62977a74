"""The gradient of a loss of a likelihood in the memory of one draw.

Shapes: B rows, W width, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import Combine, Draws, Likelihood, View, estimate, likelihood, mean, token_log_p
from remask.diffusion.reader import ModelReader, Reader, having_read


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

    if known is None and len(draws) <= 1:
        return loss_of(estimate(reader, canvas, draws, combine))
    with no_sync():
        shared = Shared(reader, canvas)

    def read(views: Sequence[View], share: Tensor | None, *, last: bool = False) -> Tensor:
        return token_log_p(shared.whole if last else shared.apart, canvas, views, share)

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
            backward(shared.counted((first * shares[-1]).sum()))
            del first
    for views, share in zip(left[:-1], shares, strict=False):
        with no_sync():
            backward(shared.counted((read(views, share) * share).sum()))
    share = shares[len(left) - 1]
    last = (read(left[-1], share, last=True) * share).sum() + shared.left()
    return last + (loss - last).detach()


class Shared:
    """The clean rows of a block model, which all draws look at, are read once. All draws but the last are read `apart`:
    their gradient ends in what is kept of the clean rows. The last one is read with the `whole`, and the gradient of
    all of them goes on from there. Under full attention nothing is shared, and both are the reader.
    """

    def __init__(self, reader: Reader, canvas: Canvas) -> None:
        self.whole = self.apart = having_read(reader, canvas)
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """What is kept, and the leaves in which gradients end."""
        self.scale = torch.zeros((), device=canvas.ids.device, requires_grad=True)
        """Its gradient tells what `backward` multiplied the gradients of the `calls` draws with."""
        self.calls = 0
        if isinstance(self.whole, ModelReader) and self.whole.kept is not None:
            leaves = self.whole.kept.apart()
            self.apart = replace(self.whole, kept=leaves)
            self.pairs = list(zip(self.whole.kept.tensors(), leaves.tensors(), strict=True))

    def counted(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the loss of a draw, from which `scale` learns what its gradient is multiplied with."""
        self.calls += 1
        return loss + self.scale if self.pairs else loss

    def left(self) -> Float[Tensor, ""] | float:
        """Return a term with the gradient that has ended in what is kept."""
        ended = [(kept * leaf.grad).sum() for kept, leaf in self.pairs if leaf.grad is not None]
        if not ended or self.scale.grad is None:
            return 0.0
        return torch.stack(ended).sum() / (self.scale.grad / self.calls)
