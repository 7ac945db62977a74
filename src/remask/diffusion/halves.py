"""Every token of a response scored once, in the light of about half of the rest.

Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.diffusion.corruption import Canvas, apply_mask, exact_count_mask
from remask.diffusion.reader import Reader
from remask.diffusion.token_loss import read_tokens


@torch.no_grad()
def score_in_halves(
    reader: Reader, canvas: Canvas, u: Float[Tensor, "B L"], mask_id: int
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Return whether the likeliest token is wrong, and −log p of the right one, with half of the response revealed.

    Of a row's n tokens, ⌊n/2⌋, those with the smallest u, are masked and scored, then the others.
    """
    where = canvas.corruptible
    half = exact_count_mask(u, where.sum(-1) // 2, where)
    wrong, nll = score_masked(reader, canvas, half, mask_id)
    others = score_masked(reader, canvas, where & ~half, mask_id)
    return wrong | others[0], nll + others[1]


@torch.no_grad()
def score_masked(
    reader: Reader, canvas: Canvas, mask: Bool[Tensor, "B L"], mask_id: int
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "B L"]]:
    """Return the same as `score_in_halves` at the tokens that `mask` hides while the others are revealed; 0 at the
    others.
    """
    wrong, nll = torch.zeros_like(mask), torch.zeros(mask.shape, device=mask.device)
    if not mask.any():
        return wrong, nll
    gold = canvas.ids[mask]

    def look(logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        return logits.argmax(-1) != gold[part], read_tokens(logits, gold[part]).nll

    hidden = apply_mask(canvas.ids, mask, mask_id)
    wrong[mask], nll[mask] = reader.look(hidden, canvas, mask, look)
    return wrong, nll
