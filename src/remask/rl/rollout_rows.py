"""Answers as rows to be trained on.

Shapes: N rows, W width (left-padded prompts and the canvas).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from remask.choices import ScopeName
from remask.diffusion.corruption import Canvas
from remask.sampling.generate import Row


@dataclass(frozen=True)
class Layout:
    """A layout says how rows are arranged. mask_id: what stands in the padding. stops: tokens that end a text. scope:
    which positions of a canvas are scored.
    """

    mask_id: int
    stops: Sequence[int]
    scope: ScopeName

    def canvas(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> Canvas:
        """Return the answers after their prompts, left-padded exactly as they were when sampled."""
        C = len(rows[0].token_ids)
        width = max(map(len, prompts)) + C
        ids = torch.full((len(rows), width), self.mask_id)
        written = torch.full(ids.shape, -1)
        attended = torch.zeros(ids.shape, dtype=torch.bool)
        response = torch.zeros_like(attended)
        response[:, width - C :] = True
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            start = width - C - len(prompt)
            ids[number, start:] = torch.tensor([*prompt, *row.token_ids])
            written[number, width - C :] = torch.tensor(row.revealed_at)
            attended[number, start:] = True
        scored = response if self.scope == "canvas" else until_end(ids, response, torch.tensor(self.stops))
        return Canvas(ids, attended, response, scored, written)


def until_end(ids: Int[Tensor, "N W"], response: Bool[Tensor, "N W"], stops: Int[Tensor, "S"]) -> Bool[Tensor, "N W"]:
    """Return the positions of the response up to its first token that ends a text, that one included."""
    end = torch.isin(ids, stops) & response
    return response & ((end.cumsum(-1) - end.long()) == 0)
