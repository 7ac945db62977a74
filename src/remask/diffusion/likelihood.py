"""How likely a model finds an answer: Monte-Carlo estimates of the ELBO (methods §1, §4).

Every draw masks an exact number of response tokens, chosen by its `Noise`: no chance enters here, and the old, the
reference and the current model of one sample are scored on the same draws. Values carry gradient.

Shapes: B batch, L length, N masked positions, V vocabulary; n = |R| response tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.corruption import Canvas, apply_mask, exact_count_mask
from remask.diffusion.importance import Predict
from remask.diffusion.noise import MIN_TIME, Noise
from remask.diffusion.token_loss import token_cross_entropy
from remask.errors import UserError


@dataclass(frozen=True)
class Likelihood:
    """An estimate of log p_θ(x), in nats.

    token [B, L]: each token's share ℓ_i (0 outside the response). sequence [B]: Σ_i ℓ_i. scored [B]: n, the response
    tokens that carry it.
    """

    token: Float[Tensor, "B L"]
    sequence: Float[Tensor, "B"]
    scored: Int[Tensor, "B"]


def elbo(model: nn.Module | Predict, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Mean over draws of −(n/k)·Σ_masked ce_i, with k = 1 + ⌊τ·n⌋ tokens masked (τ ∈ [0, 1) from the draw's t).

    Unbiased for the ELBO: k is uniform on 1..n and the k tokens with the smallest u are a uniform choice. A row without
    response tokens has likelihood 0. Raises UserError where there is no draw.
    """
    predict, scored = predict_with(model), batch.corruptible.sum(-1)
    token = _zeros(batch, noise)
    for draw in noise:
        count = (1 + (unit_time(draw) * scored).long()).clamp(max=scored)
        mask = exact_count_mask(draw.u, count, batch.corruptible)
        token = token + weighted_log_p(predict, batch, mask, scored / count.clamp(min=1), mask_id)
    token = token / len(noise)
    return Likelihood(token, token.sum(-1), scored)


def elbo_coupled(model: nn.Module | Predict, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Mean over draws of a mask's value and its complement's (ESPO, arXiv 2512.03759): every token is scored in every
    draw. k = ⌊τ·(n+1)⌋ tokens are masked with weight (n+1)/k, the other n−k with weight (n+1)/(n−k).
    """
    predict, scored = predict_with(model), batch.corruptible.sum(-1)
    token = _zeros(batch, noise)
    for draw in noise:
        count = (unit_time(draw) * (scored + 1)).long().clamp(max=scored)
        mask = exact_count_mask(draw.u, count, batch.corruptible)
        token = token + coupled_log_p(predict, batch, mask, mask_id)
    token = token / len(noise)
    return Likelihood(token, token.sum(-1), scored)


def coupled_log_p(predict: Predict, batch: Canvas, mask: Bool[Tensor, "B L"], mask_id: int) -> Float[Tensor, "B L"]:
    """½·[(n+1)/k · log p on the mask + (n+1)/(n−k) · log p on its complement]; an empty half counts 0."""
    rest = batch.corruptible & ~mask
    n = batch.corruptible.sum(-1)
    halves = [
        weighted_log_p(predict, batch, half, (n + 1) / half.sum(-1).clamp(min=1), mask_id) for half in (mask, rest)
    ]
    return (halves[0] + halves[1]) / 2


def weighted_log_p(
    predict: Predict, batch: Canvas, mask: Bool[Tensor, "B L"], weight: Float[Tensor, "B"], mask_id: int
) -> Float[Tensor, "B L"]:
    """weight · log p_θ(x_i | x with the mask's tokens hidden) on the mask, 0 elsewhere. One forward."""
    zeros = torch.zeros(batch.ids.shape, device=batch.ids.device)
    if not mask.any():
        return zeros
    ce = token_cross_entropy(predict(apply_mask(batch.ids, mask, mask_id), batch.attended, mask), batch.ids[mask])
    rows = mask.nonzero()[:, 0]
    return zeros.masked_scatter(mask, -ce * weight[rows])


def unit_time(noise: Noise) -> Float[Tensor, "B"]:
    """τ ∈ [0, 1): the draw's time, from [ε, 1] back to where it was drawn."""
    return ((noise.t.double() - MIN_TIME) / (1 - MIN_TIME)).clamp(0, 1 - 1e-9)


def predict_with(model: nn.Module | Predict) -> Predict:
    """A model as the function (ids, attended, positions) → logits that the mathematics calls."""
    if not isinstance(model, nn.Module):
        return model
    network: Any = model
    return lambda ids, attended, positions: (
        network(input_ids=ids, attention_mask=attended.long(), positions=positions).logits
    )


def _zeros(batch: Canvas, noise: Sequence[Noise]) -> Float[Tensor, "B L"]:
    if not noise:
        raise UserError("an ELBO without draws", mend="give one Noise or more")
    return torch.zeros(batch.ids.shape, device=batch.ids.device)
