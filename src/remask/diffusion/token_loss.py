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
IMPOSSIBLE = -1e30
"""Instead of −∞, which times the probability 0 would be NaN."""


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
    rows = chunk_rows(logits.shape[-1])
    parts = [_read(chunk.float(), gold) for chunk, gold in zip(logits.split(rows), targets.split(rows), strict=True)]
    if not parts:
        empty = torch.zeros(0, dtype=torch.float32, device=logits.device)
        return TokenReading(empty, empty)
    return TokenReading(torch.cat([p.entropy for p in parts]), torch.cat([p.nll for p in parts]))


def chunk_rows(vocabulary: int) -> int:
    """How many positions' logits are looked at at once."""
    return max(1, CHUNK_ELEMENTS // max(1, vocabulary))


def _read(logits: Tensor, gold: Tensor) -> TokenReading:
    """With z = logits − max and S = Σ e^z: H = log S − Σ z·e^z / S and −log p = log S − z_gold."""
    z = logits - logits.amax(-1, keepdim=True)
    of_gold = z.gather(-1, gold[:, None])[:, 0]
    e = z.clamp_(min=IMPOSSIBLE).exp()
    total = e.sum(-1)
    entropy = total.log() - e.mul_(z).sum(-1) / total
    return TokenReading(entropy.clamp_(min=0), total.log() - of_gold)
