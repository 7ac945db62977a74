"""From a group's rewards to its advantages: how much better than the group an answer is (docs/theory.md §9).

Shapes: P prompts, G completions of each. A reward of NaN is none: its completion takes no part, its advantage is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.choices import AdvantageName

MIN_SPREAD = 1e-6
"""The standard deviation below which the rewards of a group are taken as equal."""


def centred(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return r − mean over the group (Dr. GRPO, arXiv 2503.20783; d1)."""
    return reward - reward.nanmean(-1, keepdim=True)


def normalised(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return (r − mean)/std (GRPO, arXiv 2402.03300), std over the group with G − 1; 0 where rewards are equal."""
    return _over(spread(reward), reward)


def normalised_population(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return (r − mean)/std, std over the group with G (TraceRL, arXiv 2509.06949); 0 where rewards are equal."""
    count = reward.isfinite().sum(-1).clamp(min=1)
    return _over(spread(reward) * ((count - 1) / count).sqrt(), reward)


def _over(std: Float[Tensor, "P"], reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    return torch.where(std[:, None] > MIN_SPREAD, centred(reward) / std[:, None], 0.0)


def leave_one_out(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return r_i − mean of the others (RLOO, arXiv 2402.14740) = G/(G − 1)·(r_i − mean)."""
    count = reward.isfinite().sum(-1, keepdim=True)
    return centred(reward) * count / (count - 1).clamp(min=1)


def softmax(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return softmax(A) − softmax(−A) over the group, A = r − mean: this is how wd1 weighs log-likelihoods (arXiv
    2507.08838).
    """
    advantage = centred(reward)
    there = advantage.isfinite()
    up, down = (torch.where(there, a, -torch.inf).softmax(-1).nan_to_num(0.0) for a in (advantage, -advantage))
    return up - down


ADVANTAGES: dict[AdvantageName, Callable[[Tensor], Tensor]] = {
    "mean": centred,
    "normalised": normalised,
    "normalised_population": normalised_population,
    "leave_one_out": leave_one_out,
    "softmax": softmax,
}


def advantages(name: AdvantageName, reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
    """Return the named advantage of each completion: 0 for one without a reward, and for all of a group where fewer
    than two have a reward or all rewards are equal.
    """
    value = ADVANTAGES[name](reward)
    return torch.where(reward.isfinite() & informative(reward)[:, None], value, 0.0)


def informative(reward: Float[Tensor, "P G"]) -> Bool[Tensor, "P"]:
    """Return whether each group's rewards differ: a group without spread carries no policy gradient."""
    return spread(reward) > MIN_SPREAD


def spread(reward: Float[Tensor, "P G"]) -> Float[Tensor, "P"]:
    """Return the standard deviation of each group's rewards, with G − 1; 0 where fewer than two have a reward."""
    count = reward.isfinite().sum(-1)
    squares = centred(reward).square().nansum(-1)
    return torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), 0.0)
