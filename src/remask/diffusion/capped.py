"""Heads with a soft cap: logits are cap·tanh(z / cap) (Gemma, arXiv 2408.00118), and the losses of chosen tokens.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from remask.diffusion.token_loss import chunk_rows, token_cross_entropy


class Capped:
    """A head whose logits, in float32, do not go beyond its cap."""

    def __init__(self, head: nn.Module, cap: float) -> None:
        self.head, self.cap = head, cap
        self.out_features = int(getattr(head, "out_features", 0)) or len(head.get_parameter("weight"))

    def __call__(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        logits: Tensor = self.head(hidden)
        return torch.tanh(logits.float() / self.cap) * self.cap


def capped_losses(head: Capped, hidden: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return ce_i = −log p(x_i), in nats, with gradient, in the memory of a chunk's logits (`in_parts`)."""

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return token_cross_entropy(head(hidden), targets)

    return in_parts(losses, head, hidden, targets)


def in_parts(compute: Callable[..., Tensor], head: Capped, *inputs: Tensor) -> Tensor:
    """Return what is computed of positions [N, …] whose logits are formed in it, a part of them at a time. Where there
    are several parts, each is computed once more in the backward pass: its logits are not kept.
    """
    rows = chunk_rows(head.out_features)
    parts = list(zip(*(each.split(rows) for each in inputs), strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([compute(*part) for part in parts])
    return torch.cat([checkpoint(compute, *part, use_reentrant=False) for part in parts])
