"""Heads with a soft cap: logits are cap·tanh(z / cap) (Gemma, arXiv 2408.00118), and the losses of chosen tokens.

Shapes: N chosen positions, D width, V vocabulary.
"""

from __future__ import annotations

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
    """Return ce_i = −log p(x_i), in nats, with gradient. Logits are held for a chunk of positions at a time, and are
    computed once more in the backward pass.
    """

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return token_cross_entropy(head(hidden), targets)

    rows = chunk_rows(head.out_features)
    if len(hidden) <= rows or not torch.is_grad_enabled():
        parts = [losses(h, t) for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
    else:
        parts = [
            checkpoint(losses, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)
