"""What is logged: each optimiser step's numbers, averaged over a window of steps and over the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

MAXIMA = ("ratio_max", "grad_norm_max")


class Window:
    """Gathers steps. `seconds_<part>` of a step become `share_<part>` of the window's seconds, `tokens` a rate, the
    gradient norm its mean, spread and maximum; the rest are means over the steps that have them.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.steps: list[dict[str, float]] = []

    def add(self, step: dict[str, float]) -> None:
        """`step` has `seconds`; of other numbers what there is."""
        self.steps.append(step)

    def is_full(self, step: int, *, stops: bool) -> bool:
        """`stops`: no further step is taken, at the run's end or before."""
        return step % self.every == 0 or stops

    def averaged(self) -> dict[str, float]:
        """Empties the window."""
        steps, self.steps = self.steps, []
        seconds = sum(step["seconds"] for step in steps)
        names = list(dict.fromkeys(name for step in steps for name in step))
        shown: dict[str, float] = {"seconds": seconds}
        for name in names:
            values = [step[name] for step in steps if name in step]
            if name == "tokens":
                shown["tokens_per_second"] = sum(values) / seconds
            elif name.startswith("seconds_"):
                shown[f"share_{name.removeprefix('seconds_')}"] = sum(values) / seconds
            elif name == "grad_norm":
                norms = torch.tensor([float(value) for value in values])
                shown["grad_norm_mean"] = norms.mean().item()
                shown["grad_norm_std"] = norms.std(unbiased=False).item()
                shown["grad_norm_max"] = norms.max().item()
            elif name == "learning_rate":
                shown[name] = values[-1]
            elif name in MAXIMA:
                shown[name] = max(values)
            elif name not in ("seconds", "epoch"):
                shown[name] = sum(values) / len(values)
        return shown


def over_ranks(shown: dict[str, float]) -> dict[str, float]:
    """The mean (of maxima the maximum) over the processes; all have the same names."""
    return mean_of(gather_object([shown]))


def mean_of(everywhere: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number (of maxima the maximum); all have the same names."""
    return {
        name: max(each[name] for each in everywhere)
        if name in MAXIMA
        else math.fsum(each[name] for each in everywhere) / len(everywhere)
        for name in everywhere[0]
    }
