"""What is logged: each optimiser step's numbers, averaged over a window of steps and over the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer

MAXIMA = ("ratio_max", "grad_norm_max")


class Window:
    """A window gathers steps. `seconds_<part>` of a step become `share_<part>` of the window's seconds, `tokens` a
    rate, the gradient norm its mean, spread and maximum; the rest are means over the steps that have them. `loss` is
    the sum of the losses of all steps since the run's first.
    """

    def __init__(self, every: int) -> None:
        self.every, self.loss = every, 0.0
        self.steps: list[dict[str, float]] = []

    def add(self, step: dict[str, float]) -> None:
        """Add a step: it has `seconds` and `loss`, and may have other numbers."""
        self.steps.append(step)
        self.loss += step["loss"]

    def is_full(self, step: int) -> bool:
        """Return whether a window ends at this step."""
        return step % self.every == 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the window."""
        return {"loss": self.loss, "steps": self.steps}

    def restore(self, everywhere: Sequence[dict[str, Any]], rank: int, world: int) -> None:
        """Go on from what the processes of a checkpoint kept. Another number of them now share the means."""
        steps = [each["steps"] for each in everywhere]
        same = len(everywhere) == world
        self.loss = everywhere[0]["loss"]  # the same for all
        self.steps = steps[rank] if same else [mean_of(step) for step in zip(*steps, strict=True)]

    def averaged(self) -> dict[str, float]:
        """Return the averages of the window's steps, and empty it."""
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


class WindowTrainer(Trainer):
    """A trainer that logs what it measured of its steps once in a window of them, and its losses' mean over all steps
    of the run when training is over. A window that is not full then is logged too, after the last checkpoint, which
    keeps its steps: a run that goes on from there fills it, and logs what one that was never stopped does.
    """

    window: Window

    def of_step(self, logs: dict[str, float]) -> dict[str, float]:
        """Return all numbers of the step that the engine logs, with `seconds` and the engine's numbers among them."""
        raise NotImplementedError

    def averaged(self) -> dict[str, float]:
        """Return the averages of the window over all processes, which take part; it is empty afterwards."""
        return over_ranks(self.window.averaged())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Gather the logs of each step, and pass other logs, such as an evaluation's, on at once."""
        if "loss" in logs:
            self.window.add(self.of_step(logs))
            if self.window.is_full(self.state.global_step):
                super().log(self.averaged(), start_time)
            return
        if "train_loss" in logs:
            if self.window.steps:
                super().log(self.averaged(), start_time)
            logs["train_loss"] = self.window.loss / max(self.state.global_step, 1)  # the engine's begins on resuming
        super().log(logs, start_time)


def over_ranks(shown: dict[str, float]) -> dict[str, float]:
    """Return the mean (of maxima the maximum) over the processes; all have the same names."""
    return mean_of(gather_object([shown]))


def mean_of(everywhere: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number (of maxima the maximum); all have the same names."""
    return {
        name: max(each[name] for each in everywhere)
        if name in MAXIMA
        else math.fsum(each[name] for each in everywhere) / len(everywhere)
        for name in everywhere[0]
    }
