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
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from remask.diffusion.precision import computed_in
from remask.diffusion.token_loss import blocks, chunk_rows, losses_and_errors, token_cross_entropy


def head_losses(
    head: nn.Module,
    hidden: Float[Tensor, "N D"],
    targets: Int[Tensor, "N"],
    expected: Float[Tensor, "N"] | None = None,
) -> Float[Tensor, "N"]:
    """ce_i = −log p(x_i), in nats; carries gradient, which is formed in the forward pass where that is possible.

    With a frozen head it always is. With a trained one, `expected` says what the caller's loss will weigh each ce_i
    with, up to a common factor; where it is missing, or another gradient comes, the logits are computed once more.
    """
    plain = _matrix(head)
    if plain is None:
        return token_cross_entropy(head(hidden), targets)

    def losses(hidden: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _walk(hidden, plain.weight, plain.bias, targets, None, computed_in(hidden), False)[0]
        ce: Tensor = _HeadLoss.apply(hidden, plain.weight, plain.bias, targets, expected)
        return ce

    return _gathered(plain, losses, hidden)


Look = Callable[[Float[Tensor, "n V"], slice], tuple[Tensor, ...]]
"""(logits of a part of the positions, which part) → some tensors [n, …] about them. It may overwrite the logits."""


@torch.no_grad()
def look_at(head: nn.Module, hidden: Float[Tensor, "N D"], look: Look) -> tuple[Tensor, ...]:
    """What `look` says of all positions, asked part by part, without gradient."""
    plain, rows = _matrix(head), chunk_rows(getattr(head, "out_features", hidden.shape[-1]))

    def seen(hidden: Tensor, apply: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        found = []
        for part in _parts(len(hidden), rows):
            logits = apply(hidden[part])
            found += [
                look(logits[block], slice(part.start + block.start, part.start + block.stop))
                for block in blocks(logits)
            ]
        return tuple(torch.cat(columns) for columns in zip(*found, strict=True))

    if plain is None:
        return seen(hidden, head)
    return _gathered(
        plain,
        lambda hidden: seen(hidden, _Logits(plain.weight, plain.bias, computed_in(hidden), min(rows, len(hidden)))),
        hidden,
    )


def _matrix(head: nn.Module) -> nn.Linear | None:
    """The head, if it is a matrix and nothing else: not quantised, adapted, offloaded or hooked into but by what shards
    it.
    """
    if (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and "forward" not in vars(head)
        and (_sharded(head) or not (head._forward_hooks or head._forward_pre_hooks or isinstance(head.weight, DTensor)))
    ):
        return head
    return None


def _sharded(head: nn.Linear) -> bool:
    """By FSDP2 in a unit of its own (with the final norm, as accelerate does, or alone), or by DeepSpeed's ZeRO-3: its
    weight is whole in its forward pass.
    """
    return isinstance(head, FSDPModule) or hasattr(head.weight, "ds_id")


T = TypeVar("T")


def _gathered(head: nn.Linear, compute: Callable[[Tensor], T], hidden: Tensor) -> T:
    """compute(hidden), with the head's weight whole: for one that is sharded, as the head's own forward pass."""
    if not _sharded(head):
        return compute(hidden)
    vars(head)["forward"] = compute
    try:
        found: T = head(hidden)
    finally:
        del vars(head)["forward"]
    return found


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
            if self.bias is None:
                return torch.mm(hidden, self.weight.T, out=out)
            return torch.addmm(self.bias, hidden, self.weight.T, out=out)


@dataclass
class _Gradients:
    """Of Σ gain·ce: to the hidden states [N, D], and to weight [V, D] and bias [V] of a head that is trained."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a linear head."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, expected: Tensor | None
    ) -> Tensor:
        ctx.trained = any(ctx.needs_input_grad[1:3])
        ctx.dtype = computed_in(hidden)
        ctx.gain = expected if ctx.trained else torch.ones(len(targets), device=hidden.device)
        gain = ctx.gain if any(ctx.needs_input_grad) else None
        ce, ctx.formed = _walk(hidden, weight, bias, targets, gain, ctx.dtype, ctx.trained)
        if ctx.trained:
            ctx.save_for_backward(hidden, weight, bias, targets)
        return ce

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gain,), formed = gradients, ctx.formed
        if not ctx.trained:
            return (formed.hidden * gain[:, None]).to(formed.hidden.dtype), None, None, None, None
        ctx.formed = None  # its tensors become the parameters' gradients, or a part of them
        factor = None if formed is None else _common_factor(gain, ctx.gain)
        if factor is None:
            factor = 1.0
            hidden, weight, bias, targets = ctx.saved_tensors
            _, formed = _walk(hidden, weight, bias, targets, gain, ctx.dtype, True)
            assert formed is not None
        found = [formed.hidden, formed.weight, formed.bias]
        return *(g if g is None or factor == 1.0 else g.mul_(factor) for g in found), None, None


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


def _common_factor(gain: Tensor, expected: Tensor) -> float | None:
    """c with gain = c·expected, to rounding; None where there is none."""
    if not len(gain):
        return 1.0
    square = (expected * expected).sum()
    factor = torch.where(square > 0, (gain * expected).sum() / square, 0.0)
    apart = (gain - factor * expected).abs() > 1e-4 * gain.abs() + 1e-6 * gain.abs().amax()
    found, any_apart = torch.stack([factor, apart.any().to(factor.dtype)]).tolist()
    return None if any_apart else found
