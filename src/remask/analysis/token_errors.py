"""Which tokens a model gets wrong: all of the response masked, and later, when half of it is revealed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from remask.analysis.entropy_map import one_by_one
from remask.data.canvas import Row
from remask.data.collate import Collator
from remask.diffusion.corruption import Canvas, apply_mask, exact_count_mask
from remask.diffusion.predict import Network
from remask.diffusion.token_loss import read_tokens


@torch.no_grad()
def token_errors(model: Any, rows: Sequence[Row], *, mask_id: int, collator: Collator) -> list[dict[str, list]]:
    """For each row and response token: wrong (the likeliest token is another one) and nll (−log p, nats) with the whole
    response masked; later_wrong and later_nll with half of it revealed.

    Half: ⌊n/2⌋ of the n tokens, those with the smallest u of the collator's noise, are masked and scored, then the
    others: every token is scored once, in the light of about half of the rest. Rows are read one by one.
    """
    found = []
    for canvas, noise in one_by_one(rows, collator, model.device):
        where = canvas.corruptible
        half = exact_count_mask(noise.u, where.sum(-1) // 2, where)
        wrong, nll = _score(model, canvas, where, mask_id)
        later_wrong, later_nll = torch.zeros_like(wrong), torch.zeros_like(nll)
        for part in (half, where & ~half):
            later_wrong[part], later_nll[part] = (score[part] for score in _score(model, canvas, part, mask_id))
        found.append(
            {
                "wrong": wrong[where].tolist(),
                "nll": [round(v, 5) for v in nll[where].tolist()],
                "later_wrong": later_wrong[where].tolist(),
                "later_nll": [round(v, 5) for v in later_nll[where].tolist()],
            }
        )
    return found


def _score(model: Any, canvas: Canvas, mask: Bool[Tensor, "B L"], mask_id: int) -> tuple[Tensor, Tensor]:
    """Whether the likeliest token is wrong and −log p of the right one, where masked; 0 elsewhere [B, L]."""
    wrong, nll = torch.zeros_like(mask), torch.zeros(mask.shape, device=mask.device)
    if not mask.any():
        return wrong, nll
    gold = canvas.ids[mask]

    def look(logits: Tensor, part: slice) -> tuple[Tensor, ...]:
        return logits.argmax(-1) != gold[part], read_tokens(logits, gold[part]).nll

    hidden = apply_mask(canvas.ids, mask, mask_id)
    wrong[mask], nll[mask] = Network(model).call(hidden, canvas.attended, mask, look=look).seen
    return wrong, nll
