"""The noise of the SFT gradient under each method: is a method variance control, or a re-weighting?

The rows stay the same; the noise of the masks is drawn anew for every gradient. Of gradients g_1 … g_R, with mean μ and
covariance Σ,

    tr Σ ≈ mean of ½‖g_2j − g_2j+1‖² ,    ‖μ‖² ≈ ‖ḡ‖² − tr Σ/R

are unbiased. tr Σ/‖μ‖² is what an optimiser sees: it does not change with the loss's scale. Where μ points where plain
masked diffusion's does, a method changes the variance alone; where it does not, it trains another objective.

Compute is counted in forward passes of the rows: 3 for a forward and a backward pass, 1 more for a probe, LIFT's
superset or a reference model's losses.

Shapes: D trained parameters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remask.data.canvas import Row
from remask.data.collate import Collator, Visit, canvas_of, noise_of
from remask.diffusion.importance import probe_signal
from remask.diffusion.objective import (
    LIFT_RULES,
    Objective,
    corrupt,
    denominator,
    expected_weights,
    row_losses,
    scored_positions,
)
from remask.diffusion.predict import Network, token_losses
from remask.errors import UserError

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Noisiness:
    """One method's gradient over R noise draws.

    forwards: compute of one gradient. norm: ‖μ‖. variance: tr Σ, with its standard error. relative: tr Σ/‖μ‖².
    compute: forwards × relative over the first method's, i.e. how much compute for a gradient as exact as its.
    cosine: of μ with the first method's. layers: tr Σ/‖μ‖² of each layer.
    """

    name: str
    forwards: int
    norm: float
    variance: float
    variance_error: float
    relative: float
    compute: float
    cosine: float
    layers: dict[str, float]


@dataclass
class Sums:
    """What is kept of R gradients of one method: their mean, and per layer the pairs' squared differences."""

    mean: Gradient
    pairs: dict[str, list[float]]
    count: int

    def squared_mean(self, layer: str | None = None) -> float:
        """‖μ‖², without the share that is noise; of one layer, or in all."""
        names = [name for name in self.mean if layer is None or layer_of(name) == layer]
        raw = sum(self.mean[name].double().square().sum().item() for name in names)
        return raw - self.variance(layer)[0] / self.count

    def variance(self, layer: str | None = None) -> tuple[float, float]:
        """(tr Σ, its standard error)."""
        layers = list(self.pairs) if layer is None else [layer]
        each = torch.tensor([self.pairs[name] for name in layers], dtype=torch.float64).sum(0)
        return each.mean().item(), (each.std() / math.sqrt(len(each))).item() if len(each) > 1 else math.nan


def layer_of(name: str) -> str:
    """The block a parameter belongs to (`layers.3`), or for the others their module's name."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if parts[i + 1].isdecimal():
            return f"{part}.{parts[i + 1]}"
    return next((part for part in reversed(parts[:-1]) if part not in ("default", "base_layer")), name)


def forwards_of(objective: Objective) -> int:
    extra = objective.uses_probe, objective.rate in LIFT_RULES, objective.uses_reference_model
    return 3 + sum(extra)


def compare_gradients(
    model: Any,
    rows: Sequence[Row],
    collator: Collator,
    objectives: Mapping[str, Objective],
    mask_id: int,
    *,
    count: int,
    on_gradient: Callable[[], None] | None = None,
) -> list[Noisiness]:
    """`count` gradients of every method on all the rows as one batch; the first method is what others are held against.

    Each method's noise is its own, so that products of two methods' means are unbiased. The model's weights and its
    `.grad` are as before afterwards. Raises UserError for fewer than 4 gradients, or a method that needs another model.
    """
    if count < 4:
        raise UserError(f"{count} gradients", mend="a variance needs 4 or more")
    first: tuple[Sums, int] | None = None
    found = []
    for number, (name, objective) in enumerate(objectives.items()):
        if objective.uses_reference_model:
            raise UserError(f"{name} compares with a reference model, which here would be the model itself")
        sums = gather(model, rows, collator, objective, mask_id, count, number * count, on_gradient)
        first = first or (sums, forwards_of(objective))
        found.append(_noisiness(name, sums, forwards_of(objective), *first))
    return found


def gather(
    model: Any,
    rows: Sequence[Row],
    collator: Collator,
    objective: Objective,
    mask_id: int,
    count: int,
    first_visit: int = 0,
    on_gradient: Callable[[], None] | None = None,
) -> Sums:
    """`count` (made even) gradients of one method; two gradients' memory is kept beside the model's own."""
    mean: Gradient = {}
    pairs: defaultdict[str, list[float]] = defaultdict(list)
    before: Gradient = {}
    count += count % 2
    for r in range(count):
        now = gradient(model, rows, collator, objective, mask_id, first_visit + r)
        for name, g in now.items():
            mean[name] = mean[name] + g / count if name in mean else g / count
        if r % 2:
            squares: defaultdict[str, float] = defaultdict(float)
            for name, g in now.items():
                squares[layer_of(name)] += (g - before[name]).double().square().sum().item() / 2
            for layer, value in squares.items():
                pairs[layer].append(value)
        before = now
        if on_gradient is not None:
            on_gradient()
    return Sums(mean, dict(pairs), count)


def gradient(
    model: Any, rows: Sequence[Row], collator: Collator, objective: Objective, mask_id: int, visit: int
) -> Gradient:
    """∂loss/∂θ of the rows as one batch, with the noise of their `visit`-th visit."""
    batch = collator([(row, Visit(i, visit, visit * len(rows) + i)) for i, row in enumerate(rows)])
    batch = {name: value.to(model.device) for name, value in batch.items()}
    canvas, noise = canvas_of(batch), noise_of(batch)
    network = Network(model)
    reader = network.read_only()
    signal = probe_signal(reader, canvas, mask_id, objective.signal) if objective.uses_importance else None
    corrupted = corrupt(objective, canvas, noise, mask_id, signal=signal, predict=reader)
    where = scored_positions(canvas, corrupted)
    gain = expected_weights(objective, canvas, corrupted)
    kept = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    ce = token_losses(network, corrupted.ids, canvas.attended, where, canvas.ids, gain)
    loss = row_losses(objective, canvas, corrupted, ce).sum() / denominator(objective, canvas, corrupted).clamp(min=1)
    found = torch.autograd.grad(loss, list(kept.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g.detach() for (name, p), g in zip(kept.items(), found, strict=True)
    }


def _noisiness(name: str, sums: Sums, forwards: int, first: Sums, first_forwards: int) -> Noisiness:
    variance, error = sums.variance()
    relative = _over(variance, sums.squared_mean())
    product = sum((sums.mean[n].double() * first.mean[n].double()).sum().item() for n in sums.mean)
    scale = math.sqrt(max(sums.squared_mean(), 0.0) * max(first.squared_mean(), 0.0))
    return Noisiness(
        name,
        forwards,
        math.sqrt(max(sums.squared_mean(), 0.0)),
        variance,
        error,
        relative,
        forwards * relative / (first_forwards * _over(first.variance()[0], first.squared_mean())),
        1.0 if sums is first else (product / scale if scale > 0 else math.nan),
        {layer: _over(sums.variance(layer)[0], sums.squared_mean(layer)) for layer in sums.pairs},
    )


def _over(variance: float, squared_mean: float) -> float:
    """Infinite where the mean is lost in the noise."""
    return variance / squared_mean if squared_mean > 0 else math.inf
