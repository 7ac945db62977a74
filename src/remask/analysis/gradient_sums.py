"""Sums of independent gradients: what their mean and their noise are, and how far both can be trusted.

Gradients g_1 … g_R come with weights w_r, which make up for drawing some kinds more often than training does (mean 1;
all 1 where none is). With mean μ and covariance Σ of the gradients that training meets,

    E‖g‖² ≈ 1/R Σ w_r‖g_r‖² ,    ‖μ‖² ≈ (‖Σ w_r g_r‖² − Σ w_r²‖g_r‖²) / R(R−1) ,    tr Σ = E‖g‖² − ‖μ‖²

are unbiased. How far they, their ratios and cosines can be trusted is read off by leaving out one gradient at a time
(jackknife; Efron and Stein 1981). That needs every gradient, of which a sketch is kept: random signs, then the sum of
every M-th coordinate, so that inner products are right in expectation and to about 1/√M of the lengths. The figures
themselves are not sketched.

Shapes: R gradients, M numbers of a sketch.
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
"""The length M of a gradient's sketch."""


@dataclass(frozen=True)
class Drawn:
    """A drawn gradient with what sums read of it: its layers' ‖g‖² and its sketch [M]."""

    gradient: Gradient
    squares: dict[str, float]
    sketch: Tensor

    @classmethod
    def of(cls, gradient: Gradient) -> Drawn:
        """Return a gradient with its layers' ‖g‖² and its sketch."""
        squares: defaultdict[str, float] = defaultdict(float)
        for name, g in gradient.items():
            squares[layer_of(name)] += g.double().square().sum().item()
        return cls(gradient, dict(squares), sketch(gradient))

    def clip_scale(self, norm: float | None) -> float:
        """Return the factor by which clipping to the norm multiplies the gradient."""
        length = math.sqrt(sum(self.squares.values()))
        return 1.0 if norm is None or length <= norm else norm / length


@dataclass
class Sums:
    """The sums that are kept of R gradients of one method: Σ w·g, and of each its weight, its layers' ‖g‖² and a sketch
    [M].
    """

    total: Gradient = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    squares: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sketches: list[Tensor] = field(default_factory=list)

    def add(self, drawn: Drawn, weight: float = 1.0, *, scale: float = 1.0) -> None:
        """Add one more independent gradient, scale · g."""
        for name, g in drawn.gradient.items():
            part = weight * scale * g
            self.total[name] = self.total[name] + part if name in self.total else part
        for layer, value in drawn.squares.items():
            self.squares[layer].append(scale**2 * value)
        self.weights.append(weight)
        self.sketches.append(scale * drawn.sketch)

    @property
    def count(self) -> int:
        """Return the number of gradients R."""
        return len(self.weights)

    def product(self, other: Sums) -> float:
        """Return μ · μ′ of two methods whose noise is independent."""
        inner = sum((g.double() * other.total[name].double()).sum().item() for name, g in self.total.items())
        return inner / (self.count * other.count)

    def squared_mean(self, layer: str | None = None) -> float:
        """Return ‖μ‖², without the share that is noise; of one layer, or in all."""
        names = [name for name in self.total if layer is None or layer_of(name) == layer]
        raw = sum(self.total[name].double().square().sum().item() for name in names)
        own = (self._weights().square() * self._squares(layer)).sum().item()
        return (raw - own) / (self.count * (self.count - 1))

    def variance(self, layer: str | None = None) -> float:
        """Return the variance tr Σ of one layer, or in all."""
        return (self._weights() * self._squares(layer)).mean().item() - self.squared_mean(layer)

    def means_but_one(self) -> Float[Tensor, "R M"]:
        """Return the mean's sketch without each gradient in turn."""
        each = self._weighted_sketches()
        return (each.sum(0) - each) / (len(each) - 1)

    def squared_means_but_one(self) -> Float[Tensor, "R"]:
        """Return ‖μ‖² without each gradient in turn."""
        own, rest = self._weighted_sketches().square().sum(-1), self.count - 1
        raw = self.means_but_one().square().sum(-1) * rest**2
        return (raw - (own.sum() - own)) / (rest * (rest - 1))

    def variances_but_one(self) -> Float[Tensor, "R"]:
        """Return tr Σ without each gradient in turn."""
        each = self._weights() * self._squares()
        return (each.sum() - each) / (len(each) - 1) - self.squared_means_but_one()

    def _weights(self) -> Float[Tensor, "R"]:
        return torch.tensor(self.weights, dtype=torch.float64)

    def _squares(self, layer: str | None = None) -> Float[Tensor, "R"]:
        """‖g‖² of each gradient."""
        layers = list(self.squares) if layer is None else [layer]
        return torch.tensor([self.squares[name] for name in layers], dtype=torch.float64).sum(0)

    def _weighted_sketches(self) -> Float[Tensor, "R M"]:
        return torch.stack(self.sketches).double() * self._weights()[:, None]


def sketch(gradient: Gradient, size: int = SKETCH) -> Float[Tensor, "M"]:
    """Return a gradient as M numbers whose inner products are those of the gradients, in expectation (see the file's
    head).
    """
    found = torch.zeros(size)
    for number, name in enumerate(sorted(gradient)):
        flat = gradient[name].flatten()
        generator = torch.Generator(flat.device).manual_seed(number)
        signs = torch.randint(0, 2, flat.shape, generator=generator, device=flat.device, dtype=torch.int8)
        padded = torch.nn.functional.pad(flat * (2 * signs - 1), (0, -len(flat) % size))
        found += padded.reshape(-1, size).sum(0).cpu()
    return found


def layer_of(name: str) -> str:
    """Return the block a parameter belongs to (`layers.3`), or for the others their module's name."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if parts[i + 1].isdecimal():
            return f"{part}.{parts[i + 1]}"
    return next((part for part in reversed(parts[:-1]) if part not in ("default", "base_layer")), name)


def variance_error(sums: Sums) -> float | None:
    """Return the standard error of tr Σ."""
    return _together([_jackknife(sums.variances_but_one())])


def log_ratio_error(sums: Sums, other: Sums) -> float | None:
    """Return the standard error of log (tr Σ/‖μ‖²) less the other's."""
    return _together([_jackknife(s.variances_but_one().log() - s.squared_means_but_one().log()) for s in (sums, other)])


def cosine_error(sums: Sums, other: Sums) -> float | None:
    """Return the standard error of the cosine of two means."""
    errors = []
    for one, fixed in ((sums, other), (other, sums)):
        mean = fixed._weighted_sketches().mean(0)
        length = (one.squared_means_but_one() * fixed.squared_mean()).sqrt()
        errors.append(_jackknife(one.means_but_one() @ mean / length))
    return _together(errors)


def _jackknife(values: Float[Tensor, "R"]) -> float:
    """The standard error of a figure from its values without each gradient in turn; NaN where one is not known."""
    return math.sqrt((len(values) - 1) * values.var(correction=0).item())


def _together(errors: Sequence[float]) -> float | None:
    """Of independent sources; None where one is not known."""
    found = math.hypot(*errors)
    return found if math.isfinite(found) else None
