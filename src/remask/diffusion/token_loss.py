"""Per-token losses and readings at chosen positions: float32 whatever the model computes in.

Shapes: N chosen positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from remask import kernels

CHUNK_ELEMENTS = 1 << 26
"""The most logits that are kept at once, in the model's dtype: 128 MiB of bfloat16."""
BLOCK_ELEMENTS = {"cpu": 1 << 20}
"""The most logits in float32 at once: on a CPU, what its caches hold while it is read and written several times."""
LOG2_E = math.log2(math.e)
IMPOSSIBLE = -1e30
"""The logit used instead of −∞, which times the probability 0 would be NaN."""


class TokenReading(NamedTuple):
    """A reading of tokens holds the entropy H_i of the prediction and −log p of the gold token, both in nats."""

    entropy: Float[Tensor, "N"]
    nll: Float[Tensor, "N"]


def token_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return ce_i = −log p(x_i), in nats, with gradient."""
    return cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def read_tokens(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> TokenReading:
    """Return H_i = −Σ_v p_v log p_v and −log p(x_i), in blocks of positions: never with a full float32 copy of the
    logits.

    With z = logits − max and S = Σ e^z: H = log S − Σ z·e^z / S and −log p = log S − z_gold.
    """
    if kernels.serve(logits):
        from remask.kernels import tokens

        return TokenReading(*tokens.readings(logits, targets))
    entropy, nll = (torch.empty(len(targets), device=logits.device) for _ in range(2))
    for block in blocks(logits):
        z = below_peak(logits[block])
        of_gold = z.gather(-1, targets[block][:, None])[:, 0]
        e = exponential(z.clamp_(min=IMPOSSIBLE))
        total = e.sum(-1)
        log_total = total.log()
        entropy[block] = log_total - e.mul_(z).sum(-1) / total
        nll[block] = log_total - of_gold
    return TokenReading(entropy.clamp_(min=0), nll)


@torch.no_grad()
def losses_and_errors(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], *, overwrite: bool
) -> Float[Tensor, "N"]:
    """Return ce_i = −log p(x_i). With `overwrite` the logits become its gradient to them, p − onehot(x_i), in their
    dtype.
    """
    if kernels.serve(logits):
        from remask.kernels import tokens

        return tokens.losses(logits, targets, overwrite=overwrite)
    ce = torch.empty(len(targets), device=logits.device)
    for block in blocks(logits):
        z, gold = below_peak(logits[block]), targets[block][:, None]
        of_gold = z.gather(-1, gold)
        e = exponential(z, overwrite=True)
        total = e.sum(-1, keepdim=True)
        ce[block] = (total.log() - of_gold)[:, 0]
        if overwrite:
            logits[block] = e.div_(total).scatter_add_(-1, gold, -torch.ones_like(total))
    return ce


def below_peak(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """Return z = logits − max in float32, as a new tensor."""
    z = logits.to(torch.float32, copy=True)
    return z.sub_(z.amax(-1, keepdim=True))


def exponential(z: Float[Tensor, "n V"], *, overwrite: bool = False) -> Float[Tensor, "n V"]:
    """Return e^z as 2^(z·log₂e), which takes a third of the time on CPUs for which torch's library of functions has no
    fast e^z.
    """
    return (z.mul_(LOG2_E) if overwrite else z * LOG2_E).exp2_()


def chunk_rows(vocabulary: int) -> int:
    """Return how many positions' logits are kept at once."""
    return max(1, CHUNK_ELEMENTS // max(1, vocabulary))


def blocks(logits: Float[Tensor, "n V"]) -> Iterator[slice]:
    """Yield the positions whose logits are made float32 at once; there is at least one part."""
    rows = max(1, BLOCK_ELEMENTS.get(logits.device.type, CHUNK_ELEMENTS // 2) // max(1, logits.shape[-1]))
    return (slice(start, min(start + rows, len(logits))) for start in range(0, max(1, len(logits)), rows))
