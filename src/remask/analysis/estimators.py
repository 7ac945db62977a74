"""ELBO estimators side by side: bias and variance per unit of compute, and how tight the ELBO is.

An estimator draws K times for an answer; what a draw is, and how the K times are placed, is what tells them apart. The
unit of compute is one forward pass of one row.

Shapes: B rows of answers, R replicates, L length, n scored tokens of a row. Values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from remask.diffusion.any_order import (
    MOST_TOKENS,
    block_by_block,
    drawn_orders,
    exact,
    multi_sample_bound,
    order_log_p,
    subset_log_p,
)
from remask.diffusion.corruption import Canvas, apply_mask, bernoulli_mask, uniform_rate
from remask.diffusion.likelihood import (
    View,
    Views,
    coupled_views,
    elbo_coupled_views,
    elbo_views,
    estimate,
    mean_field_views,
    scored_tokens,
)
from remask.diffusion.noise import Noise
from remask.diffusion.reader import Reader
from remask.diffusion.times import LINEAR
from remask.errors import UserError

Tick = Callable[[int], None]
"""A function that is called with the number of forward passes of a row that were made since the last call."""


@dataclass(frozen=True)
class Estimator:
    """An estimator of the ELBO, or a proxy of it. views: those of a draw. forwards: those of a draw. stratified: the K
    times are one in each K-th of [0, 1), else all drawn freely. unbiased: for the ELBO.
    """

    name: str
    views: Views
    forwards: int
    stratified: bool = False
    unbiased: bool = True


def uniform_time_views(batch: Canvas, noise: Noise, mask_id: int) -> tuple[View, ...]:
    """Mask each token with probability t, each weighing 1/t: the ELBO as it is first written (docs/theory.md §2)."""
    scored = scored_tokens(batch)
    t = LINEAR.rate(noise.tau)
    mask = bernoulli_mask(noise.u, uniform_rate(t, scored), scored)
    hidden = mask | (batch.corruptible & ~batch.supervised)
    return (View(apply_mask(batch.ids, hidden, mask_id), mask, 1 / t),)


ESTIMATORS = (
    Estimator("uniform t", uniform_time_views, 1),
    Estimator("stratified t", uniform_time_views, 1, stratified=True),
    Estimator("exact count", elbo_views, 1),
    Estimator("exact count, stratified", elbo_views, 1, stratified=True),
    Estimator("coupled", elbo_coupled_views, 2),
    Estimator("coupled, stratified", elbo_coupled_views, 2, stratified=True),
    Estimator("mean field", mean_field_views, 1, unbiased=False),
    Estimator("coupled (DiffuCoder)", coupled_views, 3, unbiased=False),
)


@dataclass(frozen=True)
class Quality:
    """The quality of one estimator with K draws, per scored token and over the rows.

    bias and its 95 % interval: against the exact ELBO or the reference's mean. sd: of one estimate about the
    estimator's mean. forwards: of a row. efficiency: variance × forwards of `exact count` with the first K, over this
    one's; None for what is not made to be unbiased.
    """

    name: str
    draws: int
    forwards: int
    bias: float
    bias_low: float
    bias_high: float
    sd: float
    efficiency: float | None


def draw_noise(
    rows: int, length: int, draws: int, *, stratified: bool, generator: torch.Generator, device: Any = "cpu"
) -> list[Noise]:
    """Return K draws for each row: free times, or one in each K-th of [0, 1); u is free in both."""
    shift = torch.rand(draws, rows, generator=generator)
    place = (torch.arange(draws)[:, None] + shift) / draws if stratified else shift
    return [
        Noise(tau[:, None].expand(rows, length), torch.rand(rows, length, generator=generator)).to(device)
        for tau in place
    ]


def repeated(batch: Canvas, times: int) -> Canvas:
    """Return each row `times` times in a row."""
    return batch.each(lambda value: value.repeat_interleave(times, 0))


def chosen(batch: Canvas, rows: Tensor) -> Canvas:
    """Return some rows of the batch."""
    return batch.each(lambda value: value[rows])


@torch.no_grad()
def replicates(
    reader: Reader,
    batch: Canvas,
    estimator: Estimator,
    draws: int,
    count: int,
    mask_id: int,
    *,
    generator: torch.Generator,
    batch_size: int,
    tick: Tick | None = None,
) -> Float[Tensor, "B R"]:
    """Return `count` independent estimates of each row, per scored token."""
    many = repeated(batch, count)
    rows_in_all, length = many.ids.shape
    noise = draw_noise(rows_in_all, length, draws, stratified=estimator.stratified, generator=generator)
    values = []
    for part in torch.arange(len(many.ids)).split(batch_size):
        rows = chosen(many, part.to(many.ids.device))
        own = [Noise(n.tau[part], n.u[part]).to(many.ids.device) for n in noise]
        found = estimate(reader, rows, [estimator.views(rows, n, mask_id) for n in own])
        values.append((found.sequence / found.scored).double().cpu())
        if tick is not None:
            tick(len(part) * draws * estimator.forwards)
    return torch.cat(values).reshape(len(batch.ids), count)


def compare_estimators(
    reader: Reader,
    batch: Canvas,
    mask_id: int,
    *,
    draws: Sequence[int],
    count: int,
    reference_count: int,
    truth: Float[Tensor, "B"] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    tick: Tick | None = None,
) -> tuple[list[Quality], Float[Tensor, "B"]]:
    """Return the quality of every estimator with each K, and the value they are held against, per scored token.

    truth: the exact ELBO per token, where it has been computed; else `reference_count` draws of the coupled estimator
    give it, and their error is part of each bias's interval. A proxy without noise is read once.
    """
    generator = torch.Generator().manual_seed(seed)

    def run(estimator: Estimator, k: int, times: int) -> Tensor:
        return replicates(
            reader, batch, estimator, k, times, mask_id, generator=generator, batch_size=batch_size, tick=tick
        )

    uncertain = torch.zeros(len(batch.ids), dtype=torch.float64)
    if truth is None:
        reference = run(REFERENCE, 1, reference_count)
        truth, uncertain = reference.mean(-1), reference.var(-1) / reference_count
    found: list[Quality] = []
    for estimator in ESTIMATORS:
        for k in draws:
            times = count
            if estimator.views is mean_field_views:  # the response wholly masked: no chance, every draw is the same
                if k != draws[0]:
                    continue
                k = times = 1
            values = run(estimator, k, times)
            variance = values.var(-1) if times > 1 else torch.zeros(len(values), dtype=values.dtype)
            rows = len(values)
            bias = (values.mean(-1) - truth).mean().item()
            error = ((variance / times + uncertain).sum() / rows**2).sqrt().item()
            spread, forwards = variance.mean().item(), k * estimator.forwards
            found.append(
                Quality(estimator.name, k, forwards, bias, bias - 1.96 * error, bias + 1.96 * error, spread**0.5, None)
            )
    unit = next(q for q in found if q.name == "exact count")
    fair = {e.name for e in ESTIMATORS if e.unbiased}
    return [
        replace(q, efficiency=unit.sd**2 * unit.forwards / (q.sd**2 * q.forwards)) if q.name in fair and q.sd else q
        for q in found
    ], truth


REFERENCE = next(e for e in ESTIMATORS if e.name == "coupled")


def pass_count(rows: int, draws: Sequence[int], count: int, reference_count: int) -> int:
    """Return the forward passes of a row that `compare_estimators` makes."""
    each = sum(sum(draws) * e.forwards for e in ESTIMATORS if e.views is not mean_field_views)
    return rows * (1 + count * each + reference_count * REFERENCE.forwards)


@dataclass(frozen=True)
class Tightness:
    """The tightness of bounds, per token: what the model says of the first tokens of an answer, the rest masked.

    bounds: M and the mean over repetitions of the logarithm of the mean over M orders.
    """

    tokens: int
    elbo: float
    log_likelihood: float | None
    bounds: tuple[tuple[int, float], ...]


def first_tokens(batch: Canvas, row: int, count: int) -> Canvas:
    """Return one row of which only the first `count` response tokens are to be written, while the others stay
    hidden.
    """
    one = chosen(batch, torch.tensor([row], device=batch.ids.device))
    places = one.corruptible[0].nonzero()[:count, 0]
    kept = torch.zeros_like(one.corruptible)
    kept[0, places] = True
    return replace(one, supervised=kept)


def tightness(
    reader: Reader,
    row: Canvas,
    mask_id: int,
    *,
    orders: Sequence[int],
    repetitions: int,
    generator: torch.Generator,
    batch_size: int = 64,
) -> Tightness:
    """Return the ELBO, bounds by M orders each, and the exact likelihood where the row is short enough to write all
    subsets out.

    Raises UserError for a row without response.
    """
    n = int(scored_tokens(row).sum())
    if not n:
        raise UserError("an answer without tokens", mend="give rows whose answer has one token or more")
    most = max(orders)
    drawn = drawn_orders(most * repetitions, n, generator)
    values = order_log_p(reader, row, mask_id, drawn, batch_size=batch_size)
    bounds = tuple(
        (m, sum(multi_sample_bound(g) for g in values.split(m)) / (most * repetitions / m) / n) for m in orders
    )
    parts = block_by_block(row)
    if max(int(scored_tokens(part).sum()) for part in parts) > MOST_TOKENS:
        return Tightness(n, values.mean().item() / n, None, bounds)
    known = [exact(subset_log_p(reader, part, mask_id, batch_size=batch_size)) for part in parts]
    return Tightness(n, sum(k.elbo for k in known) / n, sum(k.log_likelihood for k in known) / n, bounds)
