"""From a uniform number to a masking rate: the schedule of the chain that masks (docs/theory.md §1).

τ is where in the chain a token stands, uniform in [0, 1); t = 1 − α(τ) is the rate at which it is masked there. A mean
over τ is an integral over t once it is weighed with dt/dτ.

Shapes: B batch, L length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from remask.choices import NoiseScheduleName, refuse_unknown
from remask.errors import UserError

MIN_TIME = 1e-3
"""The least time and masking rate ε: both live in [ε, 1] (docs/theory.md §1)."""


@dataclass(frozen=True)
class Schedule:
    """A schedule turns a uniform τ into the time t(τ) = low + (high − low)·f(τ).

    shape: f(τ) = τ (linear: LLaDA, arXiv 2502.09992) or 1 − cos(πτ/2) (cosine, in which most steps of the chain mask
    little: MaskGIT, arXiv 2202.04200). low, high: the range of rates (BD3LM clips them, arXiv 2503.09573; LLaDA2 takes
    0.3 to 0.8). Raises UserError for a range outside [0, 1] or without width.
    """

    shape: NoiseScheduleName = "linear"
    low: float = MIN_TIME
    high: float = 1.0

    def __post_init__(self) -> None:
        refuse_unknown("schedule", self.shape, NoiseScheduleName)
        if not 0 < self.low < self.high <= 1:
            raise UserError(
                f"masking rates from {self.low:g} to {self.high:g}",
                mend="give rate_low and rate_high with 0 < rate_low < rate_high <= 1",
            )

    def rate(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the time t of each τ, in float32."""
        place = tau if self.shape == "linear" else 1 - torch.cos(tau * (math.pi / 2))
        return (self.low + (self.high - self.low) * place).float()

    def weight(self, tau: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"] | None:
        """Return f′(τ), in float32: a loss that is weighed with 1/t is weighed with this too. None means 1 everywhere.

        The constant high − low is left out, as published clipped schedules leave it out.
        """
        return None if self.shape == "linear" else (math.pi / 2 * torch.sin(tau * (math.pi / 2))).float()


LINEAR = Schedule()
