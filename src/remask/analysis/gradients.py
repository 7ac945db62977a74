"""The noise of the SFT gradient under each method: is a method variance control, or a re-weighting?

The rows stay the same; the noise of the masks is drawn anew for every gradient, each as a step at some random moment of
training meets it: the rows' times are consecutive ones of the low-discrepancy sequence, from a random place on and in a
random order. Of such independent gradients g_1 … g_R, with mean μ and covariance Σ,

    tr Σ ≈ mean of ½‖g_2j − g_2j+1‖² ,    ‖μ‖² ≈ ‖ḡ‖² − tr Σ/R

are unbiased (`gradient_sums.py`). tr Σ/‖μ‖² is what an optimiser sees: it does not change with the loss's scale. Where
μ points where plain masked diffusion's does, a method changes the variance alone; where it does not, it trains another
objective.

Compute is counted in forward passes of the rows: 3 for a forward and a backward pass, 1 more for a probe, LIFT's
superset or a reference model's losses.

Shapes: D trained parameters, R gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from remask.analysis.gradient_sums import Gradient, Sums, cosine_error, log_ratio_error
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

FIRST_PLACES = 2**31
"""From how many places of the sequence of times a gradient may start."""


@dataclass(frozen=True)
class Noisiness:
    """One method's gradient over R noise draws. None: not known, as a mean is lost in the noise.

    forwards: compute of one gradient. norm: ‖μ‖. variance: tr Σ, with its standard error. relative: tr Σ/‖μ‖².
    compute: forwards × relative over the first method's, i.e. how much compute for a gradient as exact as its, with its
    95 % interval. cosine: of μ with the first method's, with its standard error. layers: tr Σ/‖μ‖² of each layer.
    """

    name: str
    forwards: int
    norm: float | None
    variance: float
    variance_error: float
    relative: float | None
    compute: float | None
    compute_low: float | None
    compute_high: float | None
    cosine: float | None
    cosine_error: float | None
    layers: dict[str, float | None]


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
    """`count` (made even) gradients of every method on all the rows as one batch; the first method is what others are
    held against.

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
        random = np.random.default_rng([collator.seed, 0x67, number])
        sums = gather(model, rows, collator, objective, mask_id, count, random, on_gradient)
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
    random: np.random.Generator,
    on_gradient: Callable[[], None] | None = None,
) -> Sums:
    """`count` (made even) gradients of one method; three gradients' memory is kept beside the model's own."""
    sums = Sums()
    for _ in range((count + 1) // 2):
        pair = []
        for _ in range(2):
            pair.append(gradient(model, rows, collator, objective, mask_id, random_visits(len(rows), random)))
            if on_gradient is not None:
                on_gradient()
        sums.add(*pair)
    return sums


def random_visits(rows: int, random: np.random.Generator) -> list[Visit]:
    """A step at a random moment of training: consecutive visits, in a random order, with noise that no other has."""
    start = int(random.integers(FIRST_PLACES))
    return [Visit(row, start, start + int(place)) for row, place in enumerate(random.permutation(rows))]


def gradient(
    model: Any,
    rows: Sequence[Row],
    collator: Collator,
    objective: Objective,
    mask_id: int,
    visits: Sequence[Visit],
) -> Gradient:
    """∂loss/∂θ in float32 of the rows as one batch, with the noise of their visits."""
    batch = collator(list(zip(rows, visits, strict=True)))
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
        name: torch.zeros_like(p, dtype=torch.float32) if g is None else g.detach().float()
        for (name, p), g in zip(kept.items(), found, strict=True)
    }


def _noisiness(name: str, sums: Sums, forwards: int, first: Sums, first_forwards: int) -> Noisiness:
    variance, error = sums.variance()
    squared, of_first = sums.squared_mean(), first.squared_mean()
    relative, unit = _over(variance, squared), _over(first.variance()[0], of_first)
    compute = spread = cosine = wide = None
    if relative is not None and unit:
        compute, cosine = forwards * relative / (first_forwards * unit), 1.0
        if sums is not first:
            cosine = sums.product(first) / math.sqrt(squared * of_first)
            spread, wide = log_ratio_error(sums, first), cosine_error(sums, first)
    return Noisiness(
        name,
        forwards,
        math.sqrt(squared) if squared > 0 else None,
        variance,
        error,
        relative,
        compute,
        None if compute is None or spread is None else compute * math.exp(-1.96 * spread),
        None if compute is None or spread is None else compute * math.exp(1.96 * spread),
        cosine,
        wide,
        {layer: _over(sums.variance(layer)[0], sums.squared_mean(layer)) for layer in sums.pairs},
    )


def _over(variance: float, squared_mean: float) -> float | None:
    """None where the mean is lost in the noise."""
    return variance / squared_mean if squared_mean > 0 else None
