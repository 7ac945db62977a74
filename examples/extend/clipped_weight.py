"""A policy objective of one's own: the ratio clipped as a weight, so that no token loses its gradient.

    remask rl --objective examples/extend/clipped_weight.py:ClippedWeight --tasks sudoku --output-dir runs/clipped

−sg[clip(ρ, 1 − ε, 1 + ε)] · A · log ρ: the gradient of the likelihood with a truncated importance weight (CISPO,
arXiv 2506.13585), here on whole answers with ESPO's ELBO and ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from remask.rl.policy_loss import PolicyObjective


@dataclass(frozen=True)
class ClippedWeight(PolicyObjective):
    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        weight = log_ratio.detach().exp().clamp(1 - self.clip_low, 1 + self.clip_high)
        return -weight * advantage * log_ratio
