"""Answers masked as they stand while they are written block by block, and a bound for those to be made less likely.

SPG (arXiv 2510.09541) scores an answer on such canvases: the blocks before one are shown but for a few tokens, some of
the block's own are masked, and so is all behind it. Where an advantage is negative it pushes down an estimate from
above, which takes two draws or more.

Shapes: B batch, L length, K draws; n scored tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from remask.diffusion.blocks import answer_blocks
from remask.diffusion.corruption import Canvas, apply_mask, lowest
from remask.diffusion.likelihood import Draws, View, scored_tokens
from remask.diffusion.noise import Noise


def block_random_views(
    batch: Canvas, noise: Noise, mask_id: int, *, length: int = 0, clean_rate: float = 0.0
) -> tuple[View, ...]:
    """Mask 1..m tokens of one block of m, any number as likely as any other, all blocks behind it, and each token of
    the prompt and of the blocks before it with probability `clean_rate`. Every masked token of the answer is scored,
    with the weight n over their number.

    length: the tokens of a block, counted from the answer's first (0: the answer is one); of a block model the blocks
    are its own. The noise's τ decides on the block and on how many of it.
    """
    scored, disturbed = scored_tokens(batch), noise.u < clean_rate
    block = answer_blocks(batch, length)
    at = noise.row_tau[:, None] * torch.where(scored, block + 1, 0).amax(-1, keepdim=True)
    own = scored & (block == at.long())
    size = own.sum(-1)
    count = (1 + (at.frac()[:, 0] * size).long()).clamp(max=size)
    mask = lowest(noise.u, count, own) | (scored & ((block > at.long()) | ((block < at.long()) & disturbed)))
    hidden = mask | (batch.corruptible & ~scored) | (batch.attended & ~batch.corruptible & disturbed)
    weight = scored.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return (View(apply_mask(batch.ids, hidden, mask_id), mask, weight.expand(mask.shape)),)


def power_mean(values: Sequence[Float[Tensor, "B L"]], draws: Draws, *, power: float) -> Float[Tensor, "B L"]:
    """Return (1/β)·log mean_k w_ki·p_ki^β of each token that a draw scores, where p_ki is its probability in draw k,
    w_ki its weight there and β the power. These tokens share evenly what all tokens of a draw weigh on average.

    Against the mean over draws, the gradient of a token goes to the draws in which it is likely: to draw k with the
    share softmax_k(log w_ki + β·log p_ki).
    """
    weight = torch.stack([_weights(views) for views in draws])
    there = weight > 0
    log_p = torch.stack(list(values)) / torch.where(there, weight, 1)
    anywhere = there.any(0)
    powers = torch.where(there, weight, 1).log() + power * log_p
    powers = torch.where(there | ~anywhere, powers, -torch.inf)  # a row of infinities alone would have no gradient
    token = (powers.logsumexp(0) - math.log(len(values))) / power
    share = weight.sum((0, 2)) / len(values) / anywhere.sum(-1).clamp(min=1)
    return torch.where(anywhere, token * share[:, None], 0.0)


def _weights(views: Sequence[View]) -> Float[Tensor, "B L"]:
    """What each token weighs in a draw."""
    weight = torch.zeros(views[0].ids.shape, device=views[0].ids.device)
    for view in views:
        weight = weight + torch.where(view.scored, view.weight, 0.0)
    return weight
