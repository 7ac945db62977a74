"""Per-token losses and readings at chosen positions: float32 whatever the model computes in.

Shapes: N chosen positions, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK_ELEMENTS = 1 << 25
"""Largest float32 copy made of logits: 128 MiB."""


class TokenReading(NamedTuple):
    """Entropy H_i of the prediction and −log p of the gold token, both in nats."""

    entropy: Float[Tensor, "N"]
    nll: Float[Tensor, "N"]


def token_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """ce_i = −log p(x_i), in nats; carries gradient."""
    return cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def read_tokens(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> TokenReading:
    """H_i = −Σ_v p_v log p_v and −log p(x_i), in chunks over positions: never a full float32 copy of the logits."""
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[-1]))
    entropies, losses = [], []
    for chunk, gold in zip(logits.split(rows), targets.split(rows), strict=True):
        log_p = chunk.float().log_softmax(-1)
        entropies.append(torch.special.entr(log_p.exp()).sum(-1))
        losses.append(-log_p.gather(-1, gold[:, None])[:, 0])
    if not entropies:
        empty = torch.zeros(0, dtype=torch.float32, device=logits.device)
        return TokenReading(empty, empty)
    return TokenReading(torch.cat(entropies), torch.cat(losses))
