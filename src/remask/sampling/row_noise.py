"""Random numbers of sampling: each is a function of (seed, row, step, place), whatever the batch and the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) in the wrapping arithmetic of int64.
WEYL, FIRST, SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


Use = Literal["token", "order"]
"""What a number decides: which token is written, or which place comes first."""


class RowNoise:
    """A stream of uniform numbers for each row, found by counting: number n of a stream needs none before it."""

    def __init__(self, seed: int, row_seeds: Sequence[int], device: torch.device) -> None:
        states = [
            np.random.SeedSequence([seed, row]).generate_state(1, np.uint64).view(np.int64)[0] for row in row_seeds
        ]
        self.keys = torch.tensor([int(state) for state in states], dtype=torch.long, device=device)

    def uniform(self, rows: Int[Tensor, "b"], step: int, places: int, use: Use) -> Float[Tensor, "b C"]:
        """One number in [0, 1), float64, for each place of the rows at this step."""
        first = (2 * step + (use == "order")) * places + 1
        counter = torch.arange(first, first + places, device=self.keys.device)
        z = self.keys[rows, None] + counter * WEYL
        z = (z ^ _shifted(z, 30)) * FIRST
        z = (z ^ _shifted(z, 27)) * SECOND
        return _shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits with zeros coming in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
