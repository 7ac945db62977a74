"""How likely a model finds an answer: Monte-Carlo estimates and one-step proxies of log p_θ (docs/theory.md §8).

An `Estimator` is a few `View`s of a draw (what the model reads, which tokens it is scored on, and what each of them
counts) and a rule that combines the values of the draws, most often their mean. The views of a draw are decided by its
`Noise`: no chance enters here, and the old, the reference and the current model of one sample are scored on the same
draws. Values carry gradient.

The response positions that are supervised are scored. Those that are only corruptible (the fill of an answer scored up
to its end) are hidden in every view and never scored.

Shapes: B batch, L length, K draws, N masked positions, V vocabulary; n scored tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.blocks import counts, lowest_of_each
from remask.diffusion.corruption import Canvas, apply_mask, bernoulli_mask
from remask.diffusion.noise import Noise
from remask.diffusion.reader import Reader, having_read, reader_of
from remask.errors import UserError

COUPLED_RATES = (0.2, 0.8)
"""The range of the share of the answer that DiffuCoder's draws mask."""
ROWS_TOGETHER = 8
"""The views of a draw are read in one forward pass if they have at most this many rows in all. More rows keep the
machine busy by themselves (docs/speed.md)."""


@dataclass(frozen=True)
class Likelihood:
    """A likelihood is an estimate of log p_θ(x), in nats.

    token [B, L]: each token's share ℓ_i (0 where not scored). sequence [B]: Σ_i ℓ_i. scored [B]: n, the tokens that
    carry it.
    """

    token: Float[Tensor, "B L"]
    sequence: Float[Tensor, "B"]
    scored: Int[Tensor, "B"]


@dataclass(frozen=True)
class View:
    """A view is the value of one forward, or of a part of one: Σ weight · log p_θ(x_i | ids) over the scored tokens."""

    ids: Int[Tensor, "B L"]
    scored: Bool[Tensor, "B L"]
    weight: Float[Tensor, "B L"]


Views = Callable[[Canvas, Noise, int], tuple[View, ...]]
"""A function (batch, one draw's noise, mask id) → the views of that draw."""
Draws = Sequence[Sequence[View]]
"""The views of each draw, one entry per draw."""
Combine = Callable[[Sequence[Tensor], Draws], Tensor]
"""A function (the values of each draw, K times [B, L]; their views) → the likelihood's share of each token [B, L]."""


def mean(values: Sequence[Float[Tensor, "B L"]], draws: Draws = ()) -> Float[Tensor, "B L"]:
    """Return the mean over draws, added up in their order."""
    total = torch.zeros_like(values[0])
    for value in values:
        total = total + value
    return total / len(values)


@dataclass(frozen=True)
class Estimator:
    """An estimator is a way to estimate a likelihood from draws.

    views: what the model is shown in a draw. combine: from the draws' values to the likelihood's, which may be other
    than a mean (a logarithm of a mean of powers bounds from above).
    """

    views: Views
    combine: Combine = mean

    def draws(self, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
        """Return the views of each draw."""
        return [self.views(batch, draw, mask_id) for draw in noise]

    def shares(self, batch: Canvas, draws: Draws, *, of_views: bool = False) -> Float[Tensor, "B L"]:
        """Return what each token counts in its row: 1, 0 where it is not scored. of_views: the scored tokens of a view
        share 1 instead, where each token is scored in one view.
        """
        if of_views:
            raise UserError(
                "the unit view with a likelihood that scores a token in several views",
                mend="set choices.unit to token, or take a likelihood of trajectories",
            )
        return scored_tokens(batch).float()


def scored_tokens(batch: Canvas) -> Bool[Tensor, "B L"]:
    """Return which tokens a likelihood is taken over: those that may be masked and may carry loss."""
    return batch.corruptible & batch.supervised


def elbo_views(batch: Canvas, noise: Noise, mask_id: int) -> tuple[View, ...]:
    """Mask k = 1 + ⌊τ·n⌋ tokens of a row, each weighing n/k. This is unbiased for the ELBO, as k is uniform on 1..n and
    the k tokens with the smallest u are a uniform choice. In a block model, n, k and τ are each block's.
    """
    return share_views(batch, noise.u, _tau(batch, noise), mask_id)


def share_views(batch: Canvas, u: Float[Tensor, "B L"], tau: Float[Tensor, "B #L"], mask_id: int) -> tuple[View, ...]:
    """Mask the k = 1 + ⌊τ·n⌋ tokens of lowest u, each weighing n/k, of a row or of each block."""
    scored = scored_tokens(batch)
    n = counts(scored, batch.block)
    count = (1 + (tau * n).long()).clamp(max=n)
    mask = lowest_of_each(u, count, scored, batch.block)
    return (_view(batch, mask, mask_id, n / count.clamp(min=1)),)


def elbo_coupled_views(batch: Canvas, noise: Noise, mask_id: int) -> tuple[View, ...]:
    """Show a mask and its complement (ESPO, arXiv 2512.03759): every token is scored in every draw. k = ⌊τ·(n+1)⌋
    tokens are masked with weight (n+1)/k, the other n−k with weight (n+1)/(n−k); the draw is the mean of the two. In a
    block model, n, k and τ are each block's, and so is the complement.
    """
    scored = scored_tokens(batch)
    n = counts(scored, batch.block)
    count = (_tau(batch, noise) * (n + 1)).long().clamp(max=n)
    return pair_views(batch, lowest_of_each(noise.u, count, scored, batch.block), mask_id)


def pair_views(batch: Canvas, mask: Bool[Tensor, "B L"], mask_id: int) -> tuple[View, ...]:
    """Weigh log p by ½·(n+1)/k on the mask, and by ½·(n+1)/(n−k) on its complement; an empty half counts 0."""
    scored = scored_tokens(batch)
    n = counts(scored, batch.block)
    return tuple(
        _view(batch, half, mask_id, (n + 1) / counts(half, batch.block).clamp(min=1) / 2)
        for half in (mask, scored & ~mask)
    )


def mean_field_views(batch: Canvas, noise: Noise, mask_id: int, *, prompt_rate: float = 0.0) -> tuple[View, ...]:
    """Give log p̂_i with the whole response masked, and each token of the prompt with probability `prompt_rate` (d1,
    arXiv 2504.12216: 0.15).
    """
    prompt = batch.attended & ~batch.corruptible
    hidden = prompt & (noise.u < prompt_rate)
    scored = scored_tokens(batch)
    ids = apply_mask(batch.ids, hidden | batch.corruptible, mask_id)
    return (View(ids, scored, torch.ones(ids.shape, device=ids.device)),)


def coupled_views(batch: Canvas, noise: Noise, mask_id: int) -> tuple[View, ...]:
    """Give ½·(log p̂ with all masked + log p̂ with a part masked / its rate), for the part and its complement, with
    rates r and 1 − r, r ~ U(0.2, 0.8) (DiffuCoder, arXiv 2506.20639).
    """
    scored = scored_tokens(batch)
    low, high = COUPLED_RATES
    rate = (low + (high - low) * _tau(batch, noise)).float()
    part = bernoulli_mask(noise.u, rate.expand_as(noise.u), scored)
    half = torch.full_like(rate, 0.5)
    return (
        _view(batch, scored, mask_id, half),
        _view(batch, part, mask_id, half / rate),
        _view(batch, scored & ~part, mask_id, half / (1 - rate)),
    )


def mean_field(model: nn.Module | Reader, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Return Σ_i log p̂_i with the whole response masked (`mean_field_views`). Nothing of the prompt is masked, so all
    draws are equal.
    """
    return estimate(model, batch, [mean_field_views(batch, draw, mask_id) for draw in noise])


def elbo(model: nn.Module | Reader, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Return the mean over draws of −(n/k)·Σ_masked ce_i (`elbo_views`), which is unbiased for the ELBO.

    A row without response tokens has likelihood 0. Raises UserError where there is no draw.
    """
    return estimate(model, batch, [elbo_views(batch, draw, mask_id) for draw in noise])


def elbo_coupled(model: nn.Module | Reader, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Return the mean over draws of a mask's value and its complement's (`elbo_coupled_views`), which is unbiased for
    the ELBO.
    """
    return estimate(model, batch, [elbo_coupled_views(batch, draw, mask_id) for draw in noise])


def coupled(model: nn.Module | Reader, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Likelihood:
    """Return DiffuCoder's mean of a fully masked and a partly masked reading (`coupled_views`)."""
    return estimate(model, batch, [coupled_views(batch, draw, mask_id) for draw in noise])


def estimate(model: nn.Module | Reader, batch: Canvas, draws: Draws, combine: Combine = mean) -> Likelihood:
    """Return the likelihood from the views of each draw. Raises UserError where there is no draw."""
    return likelihood(combine(draw_values(model, batch, draws), draws), batch)


def draw_values(model: nn.Module | Reader, batch: Canvas, draws: Draws) -> list[Float[Tensor, "B L"]]:
    """Return each draw's value of each token, in nats. Raises UserError where there is no draw."""
    if not draws:
        raise UserError("an ELBO without draws", mend="give one Noise or more")
    reader = reader_of(model)
    if len(draws) > 1:
        reader = having_read(reader, batch)
    return [token_log_p(reader, batch, views) for views in draws]


def likelihood(token: Float[Tensor, "B L"], batch: Canvas) -> Likelihood:
    """Return a likelihood from each token's share of it and the tokens that are scored."""
    return Likelihood(token, token.sum(-1), scored_tokens(batch).sum(-1))


def token_log_p(
    reader: Reader, batch: Canvas, views: Sequence[View], gain: Float[Tensor, "B L"] | None = None
) -> Float[Tensor, "B L"]:
    """Return Σ over the views of weight · log p_θ(x_i | ids) on their scored tokens.

    The views of few rows are read in one forward, others in one each, also where nothing is scored: with sharded
    weights, all processes make the same number for batches of as many rows.

    gain: what the caller's loss weighs each token's value with, where the caller can say so: it saves work
    (`Reader.losses`).
    """
    token = torch.zeros(batch.ids.shape, device=batch.ids.device)
    together = len(views) * len(batch.ids) <= ROWS_TOGETHER
    for shown in [views] if together else [[view] for view in views]:
        scored = torch.cat([view.scored for view in shown])
        weight = torch.cat([view.weight for view in shown])[scored]
        log_p = -reader.losses(
            torch.cat([view.ids for view in shown]),
            batch,
            scored,
            None if gain is None else gain.repeat(len(shown), 1)[scored] * weight,
        )
        weighed = torch.zeros(scored.shape, device=scored.device).masked_scatter(scored, log_p * weight)
        token = token + weighed.view(len(shown), *token.shape).sum(0)
    return token


def _tau(batch: Canvas, noise: Noise) -> Float[Tensor, "B #L"]:
    """τ of each row, or of each block where there are blocks."""
    if batch.block is None:
        return noise.row_tau[:, None]
    return noise.per_block(batch.block).tau.clamp(0, 1 - 1e-9)


def _view(batch: Canvas, mask: Bool[Tensor, "B L"], mask_id: int, weight: Float[Tensor, "B #L"]) -> View:
    """The mask's tokens hidden and scored; what is corruptible but not supervised hidden with them."""
    hidden = mask | (batch.corruptible & ~batch.supervised)
    return View(apply_mask(batch.ids, hidden, mask_id), mask, weight.float().expand(mask.shape))
