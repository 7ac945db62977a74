"""What the loss of a masked token is weighed with (docs/theory.md §5): one function for each name.

Shapes: B batch, L length, N scored positions (masked and supervised, in row-major order).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.choices import WeightName


@runtime_checkable
class Parameters(Protocol):
    """The objective's parameters that a weight may read (`remask.diffusion.objective.Objective`)."""

    @property
    def alpha(self) -> float: ...
    @property
    def keep(self) -> float: ...
    @property
    def cart_q(self) -> float: ...


def cart_weights(
    mask: Bool[Tensor, "B L"], attended: Bool[Tensor, "B L"], q: float, block: Int[Tensor, "B L"] | None = None
) -> Float[Tensor, "B L"]:
    """Return CART_i = Σ_{j unmasked} ½·q(1−q)^(|i−j|−1), over attended unmasked j ≠ i, prompt included (Dream,
    2508.15487).

    In a block model j runs over what token i attends to: its block, and all of the finished ones before it.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    distance = (places[:, None] - places[None, :]).abs()
    kernel = torch.where(distance > 0, 0.5 * q * (1 - q) ** (distance - 1).clamp(min=0).float(), 0.0)
    if block is None:
        return (attended & ~mask).float() @ kernel
    before = block[:, None, :] < block[:, :, None]
    own = (block[:, None, :] == block[:, :, None]) & ~mask[:, None, :]
    return (kernel * ((before | own) & attended[:, None, :])).sum(-1)


@dataclass(frozen=True)
class Scored:
    """The values that a weight may read at the N scored positions: rate p, time t, β/β_ref, the current loss (no
    gradient) and the reference model's. For weights that depend on other positions there are also where the N stand,
    the whole mask, what is attended, and the blocks.
    """

    objective: Parameters
    rate: Float[Tensor, "N"]
    time: Float[Tensor, "N"]
    importance: Float[Tensor, "N"] | None
    ce: Float[Tensor, "N"]
    ce_reference: Float[Tensor, "N"] | None
    where: Bool[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    attended: Bool[Tensor, "B L"]
    block: Int[Tensor, "B L"] | None = None


def inverse_rate_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return 1/p_i^α. At α = 1 the expected weight of every token is 1, whatever p."""
    return scored.rate**-scored.objective.alpha


def importance_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return β_i/(β_ref·t): "WeFT (SW)", a re-weighting under uniform masking."""
    assert scored.importance is not None
    return scored.importance / scored.time


def cart_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return CART_i/t, of `cart_weights`."""
    return cart_weights(scored.mask, scored.attended, scored.objective.cart_q, scored.block)[scored.where] / scored.time


def dft_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return sg[p_θ(x_i)]/t, without gradient (DFT, 2508.05629)."""
    return torch.exp(-scored.ce) / scored.time


def rho1_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return 1/t on the `keep` share of each row's masked tokens with the largest excess loss ce_i − ce_i^ref, 0 on the
    rest (Rho-1, 2404.07965). At least one token of a row is kept.
    """
    assert scored.ce_reference is not None
    rows = scored.where.nonzero()[:, 0]
    excess = scored.ce - scored.ce_reference
    kept = torch.zeros_like(excess)
    for row in rows.unique().tolist():
        members = (rows == row).nonzero()[:, 0]
        count = max(1, round(scored.objective.keep * len(members)))
        kept[members[excess[members].topk(count).indices]] = 1.0
    return kept / scored.time


def no_weight(scored: Scored) -> Float[Tensor, "N"]:
    """Return 1: what is masked more often counts more. This is not a bound (LLaDA2, Fast-dLLM v2)."""
    return torch.ones_like(scored.rate)


WEIGHTS: dict[WeightName, Callable[[Scored], Tensor]] = {
    "inverse_rate": inverse_rate_weight,
    "importance": importance_weight,
    "cart": cart_weight,
    "dft": dft_weight,
    "rho1": rho1_weight,
    "none": no_weight,
}
READ_LOSSES: tuple[WeightName, ...] = ("dft", "rho1")
"""The weights that depend on the current losses."""
