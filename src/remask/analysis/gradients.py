"""The noise of the SFT gradient under each method: is a method variance control, or a re-weighting?

The rows stay the same; the noise of the masks is drawn anew for every gradient, as a step at some random moment of
training meets it: the rows' times are consecutive ones of the low-discrepancy sequence, from a random place on and in a
random order. From their mean μ and covariance Σ (`gradient_sums.py`) comes tr Σ/‖μ‖², which is what an optimiser sees:
it does not change with the loss's scale. Where μ points where plain masked diffusion's does, a method changes the
variance alone; where it does not, it trains another objective.

Weights of 1/p have heavy tails: much of the variance lies in rare steps, those with a row of tiny t and those that mask
a token of tiny p_i, and few draws know it badly. Steps are therefore drawn with a preference for small t
(`random_visits`), which their weights make up for. Trainers clip gradients, and clipped ones have no such tails: what
an optimiser is handed is known well.

Compute is counted in forward passes of the rows: 3 for a forward and a backward pass, 1 more for a probe, LIFT's
superset or a reference model's losses.

Shapes: D trained parameters, R gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from remask.analysis.gradient_sums import Drawn, Gradient, Sums, cosine_error, log_ratio_error, variance_error
from remask.data.canvas import Row
from remask.data.collate import Collator, Visit
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise, low_discrepancy_places
from remask.diffusion.objective import (
    LIFT_RULES,
    Objective,
    corrupt,
    denominator,
    sft_terms,
)
from remask.diffusion.reader import ModelReader
from remask.diffusion.times import MIN_TIME
from remask.errors import UserError

FIRST_PLACES = 2**31
"""The number of places in the sequence of times at which a gradient may start."""
CANDIDATES = 1024


@dataclass(frozen=True)
class Noisiness:
    """The noise of one method's gradient over R draws. None: not determined, as a mean is lost in the noise.

    clip: the norm that gradients were clipped to, if they were. forwards: compute of one gradient. norm: ‖μ‖.
    variance: tr Σ, with its standard error. relative: tr Σ/‖μ‖². compute: forwards × relative over the first method's,
    i.e. how much compute for a gradient as exact as its, with its 95 % interval. cosine: of μ with the first method's,
    with its standard error. layers: tr Σ/‖μ‖² of each layer.
    """

    name: str
    clip: float | None
    forwards: int
    norm: float | None
    variance: float
    variance_error: float | None
    relative: float | None
    compute: float | None
    compute_low: float | None
    compute_high: float | None
    cosine: float | None
    cosine_error: float | None
    layers: dict[str, float | None]


def forwards_of(objective: Objective) -> int:
    """Return the compute of one gradient of an objective, in forward passes."""
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
    clip: float | None = None,
    on_gradient: Callable[[], None] | None = None,
) -> list[Noisiness]:
    """Draw `count` gradients of every method on all the rows as one batch; the first method is what others are held
    against. First come all methods' gradients as they are, then, where `clip` is given, the same clipped to that norm,
    as trainers do.

    Each method has independent noise, so that products of two methods' means are unbiased. Two methods' sums are kept
    at a time. The model's weights and its `.grad` are as before afterwards. Raises UserError for fewer than 4
    gradients, or for a method that needs another model.
    """
    if count < 4:
        raise UserError(f"{count} gradients are too few for a variance", mend="ask for 4 or more")
    found: dict[float | None, list[Noisiness]] = {norm: [] for norm in ((None,) if clip is None else (None, clip))}
    first: tuple[dict[float | None, Sums], int] | None = None
    for number, (name, objective) in enumerate(objectives.items()):
        if objective.uses_reference_model:
            raise UserError(
                f"{name} compares with a reference model, which here would be the model itself",
                mend="leave it out of objectives",
            )
        random = np.random.default_rng([collator.seed, 0x67, number])
        gathered = {norm: Sums() for norm in found}
        for g, weight in gradients(model, rows, collator, objective, mask_id, count, random):
            drawn = Drawn.of(g)
            for norm, sums in gathered.items():
                sums.add(drawn, weight, scale=drawn.clip_scale(norm))
            if on_gradient is not None:
                on_gradient()
        first = first or (gathered, forwards_of(objective))
        for norm, sums in gathered.items():
            found[norm].append(_noisiness(name, norm, sums, forwards_of(objective), first[0][norm], first[1]))
    return [each for of_norm in found.values() for each in of_norm]


def gradients(
    model: Any,
    rows: Sequence[Row],
    collator: Collator,
    objective: Objective,
    mask_id: int,
    count: int,
    random: np.random.Generator,
) -> Iterator[tuple[Gradient, float]]:
    """Yield `count` independent gradients of one method, with their weights."""
    for _ in range(count):
        visits, weight = random_visits(len(rows), collator.seed, random)
        yield gradient(model, rows, collator, objective, mask_id, visits), weight


def _times(seed: int, visits: NDArray[np.int64]) -> NDArray[np.floating]:
    """t of the linear schedule at these visits."""
    return MIN_TIME + (1 - MIN_TIME) * low_discrepancy_places(seed, visits)


def random_visits(rows: int, seed: int, random: np.random.Generator) -> tuple[list[Visit], float]:
    """Return (a step's visits, its weight): consecutive visits from a random place on, in a random order, with noise
    that no other step has.

    Of `CANDIDATES` places, each as likely as in training, one is chosen with probability ∝ v = ½ + ½·x/x̄, where x is
    the mean of its rows' t^−1.5. At small t the square of a gradient of weight 1/t, met with probability t, has a
    second moment ∝ t^−3, and its root is what to draw by. With the weight 1/v ≤ 2 expectations are exactly training's:
    over the candidates Σ (v/Σv)·(1/v)·f is the mean of f, as v's mean is 1.
    """
    places = random.integers(FIRST_PLACES, size=CANDIDATES)
    heavy = (_times(seed, places[:, None] + np.arange(rows)) ** -1.5).mean(-1)
    likely = 0.5 + 0.5 * heavy / heavy.mean()
    chosen = int(random.choice(CANDIDATES, p=likely / likely.sum()))
    start = int(places[chosen])
    visits = [Visit(row, start, start + int(place)) for row, place in enumerate(random.permutation(rows))]
    return visits, float(1 / likely[chosen])


def gradient(
    model: Any,
    rows: Sequence[Row],
    collator: Collator,
    objective: Objective,
    mask_id: int,
    visits: Sequence[Visit],
) -> Gradient:
    """Return ∂loss/∂θ in float32 of the rows as one batch, with the noise of their visits."""
    batch = collator(list(zip(rows, visits, strict=True)))
    batch = {name: value.to(model.device) for name, value in batch.items()}
    canvas, noise = in_blocks(Canvas.of(batch), attention_of(model)), Noise.of(batch)
    network = ModelReader(model)
    reader = network.read_only()
    signal = probe_signal(reader, canvas, mask_id, objective.signal) if objective.uses_importance else None
    corrupted = corrupt(objective, canvas, noise, mask_id, signal=signal, reader=reader)
    kept = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    terms = sft_terms(objective, network, canvas, corrupted)
    loss = terms.loss / denominator(objective, canvas, corrupted).clamp(min=1)
    found = torch.autograd.grad(loss, list(kept.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p, dtype=torch.float32) if g is None else g.detach().float()
        for (name, p), g in zip(kept.items(), found, strict=True)
    }


def _noisiness(name: str, clip: float | None, sums: Sums, forwards: int, first: Sums, first_forwards: int) -> Noisiness:
    squared, of_first = sums.squared_mean(), first.squared_mean()
    relative, unit = _over(sums.variance(), squared), _over(first.variance(), of_first)
    compute = spread = cosine = wide = None
    if relative is not None and unit:
        compute, cosine = forwards * relative / (first_forwards * unit), 1.0
        if sums is not first:
            cosine = sums.product(first) / math.sqrt(squared * of_first)
            spread, wide = log_ratio_error(sums, first), cosine_error(sums, first)
    return Noisiness(
        name,
        clip,
        forwards,
        math.sqrt(squared) if squared > 0 else None,
        sums.variance(),
        variance_error(sums),
        relative,
        compute,
        None if compute is None or spread is None else compute * math.exp(-1.96 * spread),
        None if compute is None or spread is None else compute * math.exp(1.96 * spread),
        cosine,
        wide,
        {layer: _over(sums.variance(layer), sums.squared_mean(layer)) for layer in sums.squares},
    )


def _over(variance: float, squared_mean: float) -> float | None:
    """None where the mean is lost in the noise."""
    return variance / squared_mean if squared_mean > 0 else None
