"""Which tokens a model gets wrong: all of the response masked, and later, when half of it is revealed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from remask.analysis.entropy_map import one_by_one
from remask.data.canvas import Row
from remask.data.collate import Collator
from remask.diffusion.blocks import attention_of
from remask.diffusion.halves import score_in_halves, score_masked
from remask.diffusion.reader import ModelReader


@torch.no_grad()
def token_errors(model: Any, rows: Sequence[Row], *, mask_id: int, collator: Collator) -> list[dict[str, list]]:
    """Return for each row and response token: wrong (the likeliest token is another one) and nll (−log p, nats) with
    the whole response masked; later_wrong and later_nll with half of it revealed, by the collator's noise
    (`score_in_halves`).

    Rows are read one by one.
    """
    found = []
    for canvas, noise in one_by_one(rows, collator, model.device, attention_of(model)):
        where = canvas.corruptible
        wrong, nll = score_masked(ModelReader(model), canvas, where, mask_id)
        later_wrong, later_nll = score_in_halves(ModelReader(model), canvas, noise.u, mask_id)
        found.append(
            {
                "wrong": wrong[where].tolist(),
                "nll": [round(v, 5) for v in nll[where].tolist()],
                "later_wrong": later_wrong[where].tolist(),
                "later_nll": [round(v, 5) for v in later_nll[where].tolist()],
            }
        )
    return found
