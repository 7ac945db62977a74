"""From noise to a masked canvas: masking rates p_i, masks m_i, and the noised ids (docs/theory.md §1).

Shapes: B batch, L length. R is the response: the corruptible positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.rows import Rows
from remask.diffusion.times import MIN_TIME


@dataclass(frozen=True)
class Canvas(Rows):
    """A canvas is a batch of rows with three separate facts per position (docs/theory.md §6).

    attended: other tokens may attend to it. corruptible: it may be masked (R). supervised: it may carry loss. Response
    EOS fill is all three; padding outside the canvas is none.

    written: where the model wrote the row itself, the step of sampling that wrote each token, −1 for the others. block:
    in a block model, the number of each token's block (`blocks.in_blocks`).
    """

    ids: Int[Tensor, "B L"]
    attended: Bool[Tensor, "B L"]
    corruptible: Bool[Tensor, "B L"]
    supervised: Bool[Tensor, "B L"]
    written: Int[Tensor, "B L"] | None = None
    block: Int[Tensor, "B L"] | None = None

    BLANK: ClassVar[Mapping[str, float]] = {"written": -1}


@dataclass(frozen=True)
class Corrupted:
    """A noised canvas holds what the model reads, which tokens were masked, with what probability, and at which time t.

    importance is β_i/β_ref where the objective reads it, else None; density is dt/dτ, None where it is 1.
    """

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    rate: Float[Tensor, "B L"]
    time: Float[Tensor, "B #L"]
    importance: Float[Tensor, "B L"] | None = None
    density: Float[Tensor, "B L"] | None = None


def uniform_rate(t: Float[Tensor, "B #L"], corruptible: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Return the masking rates p_i = t on R, 0 elsewhere."""
    return t * corruptible


def importance_rate(
    t: Float[Tensor, "B #L"], importance: Float[Tensor, "B L"], corruptible: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """Return p_i = 1 − (1 − t)^(β_i/β_ref) in [ε, 1] on R, 0 elsewhere (GIFT, arXiv 2509.20863; `importance` is
    β_i/β_ref).

    β_i = β_ref gives p_i = t to the last bit.
    """
    rate = torch.where(importance == 1, t, 1 - (1 - t) ** importance)
    return rate.clamp(MIN_TIME, 1.0) * corruptible


def bernoulli_mask(
    u: Float[Tensor, "B L"], rate: Float[Tensor, "B L"], corruptible: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """Draw the mask m_i = [u_i < p_i] on R."""
    return (u < rate) & corruptible


def exact_count_mask(
    u: Float[Tensor, "B L"], count: Int[Tensor, "B"], corruptible: Bool[Tensor, "B L"]
) -> Bool[Tensor, "B L"]:
    """Mask the `count` positions of each row's R with the smallest u."""
    return lowest(u, count, corruptible)


def lowest(score: Float[Tensor, "B L"], count: Int[Tensor, "B"], among: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """Choose the `count` positions of lowest score among the given ones, row by row; ties go to the left."""
    order = torch.where(among, score, torch.inf).argsort(dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(score.shape[1], device=score.device).expand_as(order)
    )
    return (rank < count[:, None]) & among


def apply_mask(ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], mask_id: int) -> Int[Tensor, "B L"]:
    """Return the ids with the mask token at the masked positions."""
    return ids.masked_fill(mask, mask_id)


LiftRule = Literal["easy", "hard", "plain"]


def lift_superset_rate(t: Float[Tensor, "B"], s: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Return t + ρ with ρ ~ U[lo, 1 − t], where lo is 0.1 if 1 − t > 0.1, else 0 (LIFT, arXiv 2605.22939); s is the
    uniform number.
    """
    low = torch.where(1 - t > 0.1, 0.1, 0.0)
    return t + low + s * (1 - t - low)


def lift_rule(t: float, rules: tuple[LiftRule, ...]) -> LiftRule:
    """Return the rule of largest score among {easy: t, hard: 1 − t, plain: 3t(1 − t)}."""
    score = {"easy": t, "hard": 1 - t, "plain": 3 * t * (1 - t)}
    return max(rules, key=lambda rule: score[rule])


def lift_mask(
    superset: Bool[Tensor, "B L"],
    gold_nll: Float[Tensor, "B L"],
    u: Float[Tensor, "B L"],
    t: Float[Tensor, "B"],
    superset_rate: Float[Tensor, "B"],
    rules: list[LiftRule],
) -> Bool[Tensor, "B L"]:
    """Keep k = round(n·t/(t + ρ)) of a superset of n masked tokens and reveal the rest.

    easy keeps the most confident (lowest gold_nll), hard the least, plain any (lowest u: uniform in the superset).
    """
    keep = (superset.sum(-1) * t / superset_rate).round().long()
    sign = torch.tensor([{"easy": 1.0, "hard": -1.0, "plain": 0.0}[rule] for rule in rules], device=t.device)
    plain = torch.tensor([rule == "plain" for rule in rules], device=t.device)
    score = torch.where(plain[:, None], u, sign[:, None] * gold_nll)
    return lowest(score, keep, superset)
