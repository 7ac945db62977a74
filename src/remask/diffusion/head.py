"""From hidden states to what is wanted of chosen tokens, without keeping their logits (V is 126,464 in LLaDA).

The head is applied to a chunk of positions at a time; losses, entropies and gradients are formed in that chunk's
memory, which the next one takes over: [chunk, V] whatever N. Matrix products are in the model's dtype, all else in
float32.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.diffusion.precision import computed_in
from remask.diffusion.token_loss import blocks, chunk_rows, losses_and_errors, token_cross_entropy
from remask.kernels import prepacked

T = TypeVar("T")
Look = Callable[[Float[Tensor, "n V"], slice], tuple[Tensor, ...]]
"""A function (logits of a part of the positions, which part) → some tensors [n, …] about them. It may overwrite the
logits."""


class Matrix:
    """A head that is a matrix and nothing else: its logits are hidden·weightᵀ + bias.

    A subclass is the hook for heads whose weight must first be made whole: whoever spreads weights over processes knows
    how (`remask.models.sharded_head`).
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self.out_features = linear, linear.out_features

    def whole(self, compute: Callable[[Tensor], T], hidden: Tensor) -> T:
        """Return compute(hidden), called while `linear` has its whole weight."""
        return compute(hidden)


Head = Matrix | Callable[[Tensor], Tensor]
"""A head gives the logits of hidden states. A plain `nn.Linear` is taken for its `Matrix`; all else is called."""


def weighted_cross_entropy(
    head: Head, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"], weights: Float[Tensor, "N"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "N"]]:
    """Return (Σ_i w_i·ce_i with its gradient, ce_i without), where ce_i = −log p(x_i), in nats.

    The gradient is formed together with the losses: each chunk's logits are computed once. The weights get none.
    """
    matrix = _matrix(head)
    if matrix is None:
        ce = token_cross_entropy(_called(head, hidden), targets)
        return (ce * weights.detach()).sum(), ce.detach()
    if not torch.is_grad_enabled():
        ce = two_pass_cross_entropy(head, hidden, targets)
        return (ce * weights).sum(), ce

    def losses(hidden: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = matrix.linear.weight, matrix.linear.bias
        found: tuple[Tensor, Tensor] = _OnePass.apply(hidden, weight, bias, targets, weights.detach())
        return found

    return matrix.whole(losses, hidden)


def two_pass_cross_entropy(head: Head, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return ce_i = −log p(x_i), in nats, with gradient: for losses whose weights depend on the ce_i themselves.

    A trained head's logits are computed once more in the backward pass, when the weights have been computed; a frozen
    head's are not, as the gradient of each hidden state is only scaled by its weight.
    """
    matrix = _matrix(head)
    if matrix is None:
        return token_cross_entropy(_called(head, hidden), targets)

    def losses(hidden: Tensor) -> Tensor:
        weight, bias = matrix.linear.weight, matrix.linear.bias
        if not torch.is_grad_enabled():
            return _walk(hidden, weight, bias, targets, None, computed_in(hidden), False)[0]
        ce: Tensor = _TwoPasses.apply(hidden, weight, bias, targets)
        return ce

    return matrix.whole(losses, hidden)


def with_gradient_of(
    loss: Float[Tensor, ""], ce: Float[Tensor, "N"], weights: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """Return ce with the gradient of loss = Σ w·ce, for a caller who takes another sum of them that weighs each in
    proportion to w. A sum that weighs them otherwise raises RuntimeError in the backward pass.
    """
    found: Tensor = _WithGradientOf.apply(loss, ce, weights.detach())
    return found


@torch.no_grad()
def look_at(head: Head, hidden: Float[Tensor, "N D"], look: Look) -> tuple[Tensor, ...]:
    """Return what `look` gives for all positions, called part by part, without gradient."""
    matrix, rows = _matrix(head), chunk_rows(getattr(head, "out_features", hidden.shape[-1]))

    def seen(hidden: Tensor, apply: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        found = []
        for part in _parts(len(hidden), rows):
            logits = apply(hidden[part])
            found += [
                look(logits[block], slice(part.start + block.start, part.start + block.stop))
                for block in blocks(logits)
            ]
        return tuple(torch.cat(columns) for columns in zip(*found, strict=True))

    def in_chunks(hidden: Tensor) -> tuple[Tensor, ...]:
        assert matrix is not None
        weight, bias = matrix.linear.weight, matrix.linear.bias
        return seen(hidden, _Logits(weight, bias, computed_in(hidden), min(rows, len(hidden))))

    return seen(hidden, lambda part: _called(head, part)) if matrix is None else matrix.whole(in_chunks, hidden)


def _matrix(head: Head) -> Matrix | None:
    """The head as a matrix; None where it is more: quantised, adapted, offloaded or hooked into."""
    if isinstance(head, Matrix):
        return head
    if (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
    ):
        return Matrix(head)
    return None


def _called(head: Head, hidden: Tensor) -> Tensor:
    assert not isinstance(head, Matrix)
    return head(hidden)


def _parts(count: int, rows: int) -> Iterator[slice]:
    """One at least."""
    return (slice(start, start + rows) for start in range(0, max(1, count), rows))


class _Logits:
    """The matrix, applied to up to so many positions at a time, always into the same memory."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, rows: int) -> None:
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.room = torch.empty(rows, len(weight), dtype=dtype, device=weight.device)

    def __call__(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        out = self.room[: len(hidden)]
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(out.dtype)
            held = prepacked.held(self.weight)
            if held is not None:
                return held.product(hidden, self.bias)
            if self.bias is None:
                return torch.mm(hidden, self.weight.T, out=out)
            return torch.addmm(self.bias, hidden, self.weight.T, out=out)


@dataclass
class _Gradients:
    """Of Σ gain·ce: to the hidden states [N, D], and to weight [V, D] and bias [V] of a head that is trained."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class _OnePass(torch.autograd.Function):
    """Σ w·ce of a linear head, and ce; the gradient of the sum is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.trained, ctx.weights = any(ctx.needs_input_grad[1:3]), weights
        gain = _gain(ctx, weights if ctx.trained else torch.ones(len(targets), device=hidden.device))
        ce, ctx.formed = _walk(hidden, weight, bias, targets, gain, computed_in(hidden), ctx.trained)
        ctx.mark_non_differentiable(ce)
        return (ce * weights).sum(), ce

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gain, formed = gradients[0] * ctx.weights, ctx.formed
        if not ctx.trained:
            return _of_frozen(formed, gain), None, None, None, None
        ctx.formed = None  # its tensors become the parameters' gradients, or a part of them
        # gradients[0] but for rounding, and rounded as it always was: runs give the same weights as before.
        factor = common_factor(gain, ctx.weights).item()
        found = [formed.hidden, formed.weight, formed.bias]
        return *(g if g is None or factor == 1.0 else g.mul_(factor) for g in found), None, None


class _TwoPasses(torch.autograd.Function):
    """ce of a linear head; the gradient of one that is trained is formed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        ctx.trained, ctx.dtype = any(ctx.needs_input_grad[1:3]), computed_in(hidden)
        gain = None if ctx.trained else _gain(ctx, torch.ones(len(targets), device=hidden.device))
        ce, ctx.formed = _walk(hidden, weight, bias, targets, gain, ctx.dtype, ctx.trained)
        if ctx.trained:
            ctx.save_for_backward(hidden, weight, bias, targets)
        return ce

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gain,) = gradients
        if not ctx.trained:
            return _of_frozen(ctx.formed, gain), None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        _, formed = _walk(hidden, weight, bias, targets, gain, ctx.dtype, True)
        assert formed is not None
        return formed.hidden, formed.weight, formed.bias, None


class _WithGradientOf(torch.autograd.Function):
    """ce, whose gradient is handed on as that of Σ w·ce."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, ce: Tensor, weights: Tensor) -> Tensor:
        ctx.weights = weights
        return ce.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gain,) = gradients
        factor = common_factor(gain, ctx.weights)
        largest = gain.abs().amax() if len(gain) else 0.0
        rounding = 1e-4 * gain.abs() + 1e-6 * largest + torch.finfo(gain.dtype).tiny
        if ((gain - factor * ctx.weights).abs() > rounding).any():
            raise RuntimeError("the losses are weighed otherwise than the `weights` they were asked for with")
        return factor, None, None


def _gain(ctx: Any, weights: Tensor) -> Tensor | None:
    """The weights, if anything wants a gradient."""
    return weights if any(ctx.needs_input_grad) else None


def _of_frozen(formed: _Gradients, gain: Tensor) -> Tensor:
    """The hidden states' gradient from that of Σ ce."""
    return (formed.hidden * gain[:, None]).to(formed.hidden.dtype)


@torch.no_grad()
def _walk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    gain: Tensor | None,
    dtype: torch.dtype,
    trained: bool,
) -> tuple[Tensor, _Gradients | None]:
    """ce [N], and where a gain is given the gradients of Σ gain·ce (to the head's own only if it is trained)."""
    rows = min(len(targets), chunk_rows(len(weight)))
    logits_of = _Logits(weight, bias, dtype, rows)
    hidden, ce = hidden.to(dtype), torch.empty(len(targets), device=hidden.device)
    formed = None
    if gain is not None:
        formed = _Gradients(
            torch.empty_like(hidden),
            None,
            torch.zeros(len(weight), device=hidden.device) if trained and bias is not None else None,
        )
    for part in _parts(len(targets), max(1, rows)):
        logits = logits_of(hidden[part])
        ce[part] = losses_and_errors(logits, targets[part], overwrite=gain is not None)
        if gain is None or formed is None:
            continue
        # `logits` now holds p − onehot(x). What weighs the losses is put on the narrow side of each product.
        share = gain[part][:, None].float()
        formed.hidden[part] = (logits @ logits_of.weight).mul_(share)
        if trained:
            formed.weight = _plus(formed.weight, logits, (hidden[part] * share).to(dtype))
        if formed.bias is not None:
            for block in blocks(logits):
                formed.bias += share[block, 0] @ logits[block].float()
    if formed is not None and formed.weight is not None:
        formed.weight = formed.weight.to(weight.dtype)
    return ce, formed


def _plus(total: Tensor | None, left: Float[Tensor, "n V"], right: Float[Tensor, "n D"]) -> Float[Tensor, "V D"]:
    """total + leftᵀ·right; float32 from the second term on."""
    if total is None:
        return left.T @ right
    if left.dtype == torch.float32:
        return total.addmm_(left.T, right)
    return total.float().add_(left.T @ right)


def common_factor(gain: Float[Tensor, "N"], weights: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """Return c with gain = c·weights, by least squares; 0 where all weights are 0."""
    if not len(weights):
        return weights.new_zeros(())
    # Both times the same power of two, so that the squares of tiny weights are not 0: a ratio's may be e^−80.
    largest = weights.abs().amax()
    scale = (torch.frexp(largest).mantissa / largest).clamp(max=2.0**126)
    gain, weights = gain * scale, weights * scale
    square = (weights * weights).sum()
    return torch.where(square > 0, (gain * weights).sum() / square, 0.0)
