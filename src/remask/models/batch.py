"""A batch as a model's inner part takes it.

Shapes: B rows, L length, T tokens of a packed batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch as the inner model takes it. `inputs` are its keywords, `positions` what is chosen of its tokens (None:
    all), `starts` each row's first one. before: the token, counted through the rows, whose output predicts each one in
    a shifted model, where it is not always the one before. All have the shape of its tokens, [B, L], or [T] where it is
    packed.
    """

    inputs: dict[str, Any]
    positions: Bool[Tensor, "..."] | None
    starts: Bool[Tensor, "..."]
    before: Int[Tensor, "..."] | None = None

    def predicting(self) -> Int[Tensor, "T"]:
        """Return for each token, counted through the rows, the one whose output predicts it in a shifted model: the one
        before, but of a row's first one that one itself.
        """
        starts = self.starts.flatten()
        if self.before is not None:
            return self.before.flatten()
        return torch.arange(len(starts), device=starts.device) - (~starts).long()

    def predictors(self, *, shift: bool) -> Int[Tensor, "N"] | None:
        """Return the tokens whose outputs predict the chosen ones; None where nothing is chosen."""
        if self.positions is None:
            return None
        at = self.positions.flatten().nonzero()[:, 0]
        return self.predicting()[at] if shift else at
