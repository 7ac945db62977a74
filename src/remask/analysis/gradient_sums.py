"""Sums of independent gradients: what their mean and their noise are, and how far both can be trusted.

How far ratios and cosines can be trusted is read off by leaving out one pair of gradients at a time (jackknife; Efron
and Stein 1981). That needs every gradient, of which a sketch is kept: random signs, then the sum of every M-th
coordinate, so that inner products are right in expectation and to about 1/√M of the lengths. The figures themselves are
not sketched. Weights of 1/t have heavy tails: a few draws carry much of the variance, and few gradients show few of
them.

Shapes: R gradients, P = R/2 pairs, M numbers of a sketch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Gradient = dict[str, Tensor]
SKETCH = 4096
"""M."""


@dataclass
class Sums:
    """What is kept of R gradients of one method: their sum, and of each pair its layers' halved squared differences
    and the sketch [M] of its mean.
    """

    total: Gradient = field(default_factory=dict)
    pairs: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sketches: list[Tensor] = field(default_factory=list)

    def add(self, one: Gradient, other: Gradient) -> None:
        """Two more independent gradients."""
        squares: defaultdict[str, float] = defaultdict(float)
        for name, g in one.items():
            both = g + other[name]
            self.total[name] = self.total[name] + both if name in self.total else both
            squares[layer_of(name)] += (g - other[name]).double().square().sum().item() / 2
        for layer, value in squares.items():
            self.pairs[layer].append(value)
        self.sketches.append((sketch(one) + sketch(other)) / 2)

    @property
    def count(self) -> int:
        """R."""
        return 2 * len(self.sketches)

    def product(self, other: Sums) -> float:
        """ḡ · ḡ′."""
        inner = sum((g.double() * other.total[name].double()).sum().item() for name, g in self.total.items())
        return inner / (self.count * other.count)

    def squared_mean(self, layer: str | None = None) -> float:
        """‖μ‖², without the share that is noise; of one layer, or in all."""
        names = [name for name in self.total if layer is None or layer_of(name) == layer]
        raw = sum(self.total[name].double().square().sum().item() for name in names) / self.count**2
        return raw - self.variance(layer)[0] / self.count

    def variance(self, layer: str | None = None) -> tuple[float, float]:
        """(tr Σ, its standard error)."""
        each = self.halves(layer)
        return each.mean().item(), (each.std() / math.sqrt(len(each))).item() if len(each) > 1 else math.nan

    def halves(self, layer: str | None = None) -> Float[Tensor, "P"]:
        """½‖g_2j − g_2j+1‖² of each pair."""
        layers = list(self.pairs) if layer is None else [layer]
        return torch.tensor([self.pairs[name] for name in layers], dtype=torch.float64).sum(0)

    def means_but_one(self) -> Float[Tensor, "P M"]:
        """The mean's sketch without each pair in turn."""
        each = torch.stack(self.sketches).double()
        return (each.sum(0) - each) / (len(each) - 1)

    def squared_means_but_one(self) -> Float[Tensor, "P"]:
        """‖μ‖² without each pair in turn."""
        pairs = len(self.sketches) - 1
        return self.means_but_one().square().sum(-1) - self.variances_but_one() / (2 * pairs)

    def variances_but_one(self) -> Float[Tensor, "P"]:
        """tr Σ without each pair in turn."""
        each = self.halves()
        return (each.sum() - each) / (len(each) - 1)


def sketch(gradient: Gradient) -> Float[Tensor, "M"]:
    """A gradient as M numbers whose inner products are those of the gradients, in expectation (see the file's head)."""
    found = torch.zeros(SKETCH)
    for number, name in enumerate(sorted(gradient)):
        flat = gradient[name].flatten()
        generator = torch.Generator(flat.device).manual_seed(number)
        signs = torch.randint(0, 2, flat.shape, generator=generator, device=flat.device, dtype=torch.int8)
        padded = torch.nn.functional.pad(flat * (2 * signs - 1), (0, -len(flat) % SKETCH))
        found += padded.reshape(-1, SKETCH).sum(0).cpu()
    return found


def layer_of(name: str) -> str:
    """The block a parameter belongs to (`layers.3`), or for the others their module's name."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if parts[i + 1].isdecimal():
            return f"{part}.{parts[i + 1]}"
    return next((part for part in reversed(parts[:-1]) if part not in ("default", "base_layer")), name)


def log_ratio_error(sums: Sums, other: Sums) -> float | None:
    """The standard error of log (tr Σ/‖μ‖²) less the other's."""
    errors = [_jackknife(s.variances_but_one().log() - s.squared_means_but_one().log()) for s in (sums, other)]
    return _together(errors)


def cosine_error(sums: Sums, other: Sums) -> float | None:
    """The standard error of the cosine of two means."""
    errors = []
    for one, fixed in ((sums, other), (other, sums)):
        mean = torch.stack(fixed.sketches).double().mean(0)
        squared = mean.square().sum() - fixed.variance()[0] / fixed.count
        errors.append(_jackknife(one.means_but_one() @ mean / (one.squared_means_but_one() * squared).sqrt()))
    return _together(errors)


def _jackknife(values: Float[Tensor, "P"]) -> float:
    """The standard error of a figure from its values without each pair in turn; NaN where one of them is not known."""
    return math.sqrt((len(values) - 1) * values.var(correction=0).item())


def _together(errors: Sequence[float]) -> float | None:
    """Of two independent sources; None where one is not known."""
    found = math.hypot(*errors)
    return found if math.isfinite(found) else None
