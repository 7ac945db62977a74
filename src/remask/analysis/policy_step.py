"""Weights that have moved, and how much reward one small step along a mean gradient gains.

To first order a step of length L along −ḡ/‖ḡ‖, with ḡ the mean of an objective's R gradients of its loss, gains
L·ḡ·ν/‖ḡ‖, where ν is the mean of the sampler's own (∇E[reward] is −ν). ḡ·ν is not known, but its mean μ·ν is
(`noisy_means`). What a step gains is measured on problems that no gradient was taken of: the same answers' seeds before
and after it, and an interval over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from remask.analysis.gradient_sums import Gradient
from remask.evaluation.statistics import paired_difference
from remask.rl.groups import Group


@dataclass(frozen=True)
class Gain:
    """The reward gained by a step along an objective's mean gradient: what is expected of it to first order, what was
    measured, and the 95 % interval over problems.
    """

    name: str
    expected: float
    measured: float
    low: float
    high: float


def length_of(gradient: Gradient) -> float:
    """Return the norm ‖g‖ of a gradient."""
    return float(torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt())


def downhill(gradient: Gradient, length: float) -> Gradient:
    """Return a move of this length against a gradient of a loss."""
    scale = length / max(length_of(gradient), 1e-30)
    return {name: -scale * g for name, g in gradient.items()}


@contextmanager
def moved(model: Any, move: Gradient) -> Iterator[None]:
    """Add a move to the model's weights while the block runs; afterwards they are as before, to the last bit."""
    named = {name: p for name, p in model.named_parameters() if name in move}
    before = {name: p.detach().clone() for name, p in named.items()}
    try:
        with torch.no_grad():
            for name, p in named.items():
                p.add_(move[name].to(p.dtype))
        yield
    finally:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name])


def gains(
    model: Any,
    means: dict[str, Gradient],
    expected: dict[str, float],
    length: float,
    answered: Callable[[], Sequence[Group]],
) -> Iterator[Gain]:
    """Yield what a step of this length along each objective's mean gains. expected: μ·ν/‖ḡ‖ of each. answered: groups
    of answers to fresh problems, from the weights as they are, always of the same seeds.
    """
    before = _by_problem(answered())
    for name, mean in means.items():
        with moved(model, downhill(mean, length)):
            after = _by_problem(answered())
        rewards = (*before, *after)
        found = paired_difference([after], [before], limit=max(1.0, max(rewards) - min(rewards)))
        yield Gain(name, length * expected[name], found.mean, found.low, found.high)


def _by_problem(groups: Sequence[Group]) -> list[float]:
    return [sum(group.total) / len(group.total) for group in groups]
