"""What an answer's loss takes from the other answers of its group, whichever micro-batches and processes they are in.

Self-normalised weights are an answer's capped ratio over the mean of its group's; trajectory balance needs the log of
its normaliser Z, estimated by the group's mean log-ratio to the anchor (VarGrad, arXiv 2010.10436). Both are read
without gradient before an optimiser step.

Shapes: B rows of a micro-batch, P groups of a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.likelihood import Likelihood
from remask.rl.policy_loss import PolicyObjective, bounded_exp, sizes


def to_group(
    objective: PolicyObjective, current: Likelihood, anchor: Likelihood, shares: Float[Tensor, "B L"]
) -> Float[Tensor, "B"]:
    """Return what each row adds to the mean of its group: its log-ratio to the anchor (square), or its capped ratio,
    where the anchor is the policy that wrote it (self_normalised).
    """
    distance = (current.sequence - anchor.sequence) / (sizes(shares) if objective.level == "sequence" else 1)
    return distance if objective.loss == "square" else bounded_exp(distance).clamp(max=objective.weight_cap)


def group_means(
    own: Sequence[Float[Tensor, "B"]],
    group: Sequence[Int[Tensor, "B"]],
    counted: Sequence[Bool[Tensor, "B"]],
    groups: int,
    *,
    summed: Callable[[Tensor], Tensor] = lambda total: total,
) -> Float[Tensor, "P"]:
    """Return the mean of each group over the rows of all micro-batches that are counted; 0 for a group without any.
    summed: the sum of a tensor over processes.
    """
    total = torch.zeros(2, groups, device=own[0].device)
    for value, number, there in zip(own, group, counted, strict=True):
        total[0].index_add_(0, number, torch.where(there, value.float(), 0.0))
        total[1].index_add_(0, number, there.float())
    total = summed(total)
    return total[0] / total[1].clamp(min=1)


def from_group(objective: PolicyObjective, own: Float[Tensor, "B"], mean: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Return what its group says of each row: the group's mean (square), or the row's weight (self_normalised)."""
    return mean if objective.loss == "square" else own / torch.where(mean > 0, mean, 1)
