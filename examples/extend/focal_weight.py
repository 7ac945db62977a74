"""A weight of one's own with a parameter: fine-tuning that looks away from what the model knows already.

    remask sft --objective examples/extend/focal_weight.py:Focal --choices.own gamma 2 --output-dir runs/focal

Each masked token's loss is weighed by (1 − p_i)^γ / t, p_i the probability that the model gives the token (focal loss,
arXiv 1708.02002). γ = 0 is plain SFT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remask.diffusion.objective import Objective, Scored


@dataclass(frozen=True)
class Focal(Objective):
    gamma: float = 2.0

    def weigh(self, scored: Scored) -> torch.Tensor:
        return (1 - torch.exp(-scored.ce)) ** self.gamma / scored.time
