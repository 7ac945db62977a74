"""Random numbers of sampling, per row: a row draws the same alone and in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class RowNoise:
    """A generator for each row, seeded by the run's seed and the row's."""

    def __init__(self, seed: int, row_seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self.generators = []
        for row_seed in row_seeds:
            state = int(np.random.SeedSequence([seed, row_seed]).generate_state(1, np.uint64)[0] >> 1)
            self.generators.append(torch.Generator(device).manual_seed(state))

    def gumbel(self, rows: Sequence[int], vocabulary: int) -> Float[Tensor, "n V"]:
        """One row of Gumbel noise per position; `rows` names the row each position belongs to, in order."""
        parts, start = [], 0
        while start < len(rows):
            stop = start
            while stop < len(rows) and rows[stop] == rows[start]:
                stop += 1
            shape = (stop - start, vocabulary)
            parts.append(torch.empty(shape, device=self.device).exponential_(generator=self.generators[rows[start]]))
            start = stop
        return -torch.cat(parts).clamp(min=1e-30).log()

    def uniform(self, rows: Sequence[int], length: int) -> Float[Tensor, "b C"]:
        return torch.stack([torch.rand(length, device=self.device, generator=self.generators[row]) for row in rows])
