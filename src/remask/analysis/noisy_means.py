"""Two means that are known from noisy draws: how long they are, and what angle is between them.

g_1 … g_R are drawn of one method and h_1 … h_R of another, with means μ and ν. Draws of different numbers are
independent; g_r and h_r may be of the same answers, and then their noise has a part in common. Of means taken as they
are, ‖ḡ‖² is too large by the noise, and ḡ·h̄ by the noise in common. Pairs of different draws have neither:

    μ·ν ≈ Σ_{r≠s} g_r·h_s / R(R − 1) ,    ‖μ‖² ≈ Σ_{r≠s} g_r·g_s / R(R − 1) ,    tr Σ = Σ_r ‖g_r‖²/R − ‖μ‖²

are unbiased, and the cosine (μ·ν)/(‖μ‖·‖ν‖) of these is without their noise's bias up to terms of order 1/R. It may
come out above 1. All that is needed of the draws is their inner products.

Intervals are percentiles of a bootstrap over draws (Efron 1979): draw r stands in a resample c_r times, and a pair
r ≠ s weighs c_r·c_s. Copies of one draw make no pair, as they would bring its noise back.

Shapes: R draws, N resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from remask.errors import UserError

RESAMPLES = 1000
MOST_UNKNOWN = 0.025
"""The share of resamples in which a figure may be unknown where an interval is still given."""

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval. None: lost in the noise."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Products:
    """The inner products [R, R] of two methods' draws: own g_r·g_s, other h_r·h_s, cross g_r·h_s.

    paired: whether g_r and h_r have noise in common; else all pairs of the cross products are used.
    """

    own: Float[Array, "R R"]
    other: Float[Array, "R R"]
    cross: Float[Array, "R R"]
    paired: bool = True

    def __post_init__(self) -> None:
        if len(self.own) < 2:
            raise UserError(f"{len(self.own)} draws are too few for a mean and its noise", mend="ask for 2 or more")


@dataclass(frozen=True)
class Moments:
    """The moments of the two methods' draws, one value for each resample: ‖μ‖², ‖ν‖², μ·ν, E‖g‖² and E‖h‖²."""

    own: Float[Array, "N"]
    other: Float[Array, "N"]
    inner: Float[Array, "N"]
    own_square: Float[Array, "N"]
    other_square: Float[Array, "N"]

    @classmethod
    def of(cls, products: Products, counts: Int[Counts, "N R"], of_other: Int[Counts, "N R"]) -> Moments:
        """Return the moments where draws stand `counts` and `of_other` times in the resamples, the same where the draws
        are paired.
        """
        if products.paired:
            inner = _of_pairs(products.cross, counts)
        else:
            sums = ((counts @ products.cross) * of_other).sum(-1)
            inner = sums / (counts.sum(-1) * of_other.sum(-1))
        return cls(
            _of_pairs(products.own, counts),
            _of_pairs(products.other, of_other),
            inner,
            _of_each(products.own, counts),
            _of_each(products.other, of_other),
        )

    def product(self) -> Float[Array, "N"]:
        """Return the inner product μ·ν of the two means."""
        return self.inner

    def cosine(self) -> Float[Array, "N"]:
        """Return the cosine of the two means; NaN where one is lost in the noise."""
        return self.inner / (_root(self.own) * _root(self.other))

    def one_draw(self) -> Float[Array, "N"]:
        """Return μ·ν/(‖ν‖·√E‖g‖²): how much of a single draw's length points along ν."""
        return self.inner / (_root(self.other) * np.sqrt(self.own_square))

    def relative(self) -> Float[Array, "N"]:
        """Return tr Σ/‖μ‖², the noise of one draw: a mean of so many draws is as long as its noise."""
        return (self.own_square - self.own) / _root(self.own) ** 2

    def compute(self) -> Float[Array, "N"]:
        """Return the relative noise over the other method's: how many draws it takes for a mean that is as exact as
        one of its draws.
        """
        return self.relative() / ((self.other_square - self.other) / _root(self.other) ** 2)

    def norm(self) -> Float[Array, "N"]:
        """Return the norm ‖μ‖ of the first mean."""
        return _root(self.own)


def value_of(products: Products, of: Callable[[Moments], Array]) -> float:
    """Return a figure of the moments without its interval; NaN where it is lost in the noise."""
    return float(of(Moments.of(products, _once(len(products.own)), _once(len(products.other))))[0])


def figure(products: Products, of: Callable[[Moments], Array], *, seed: int = 0) -> Figure:
    """Return a figure of the moments, with its interval. No interval is given where the figure is unknown in more than
    2.5 % of the resamples.
    """
    draws, others = len(products.own), len(products.other)
    value = value_of(products, of)
    if not np.isfinite(value):
        return Figure(None)
    random = np.random.default_rng(seed)
    counts = random.multinomial(draws, np.full(draws, 1 / draws), size=RESAMPLES)
    of_other = counts if products.paired else random.multinomial(others, np.full(others, 1 / others), size=RESAMPLES)
    found = of(Moments.of(products, counts, of_other))
    known = found[np.isfinite(found)]
    if len(known) < (1 - MOST_UNKNOWN) * RESAMPLES:
        return Figure(value)
    low, high = np.percentile(known, [2.5, 97.5])
    return Figure(value, float(low), float(high))


def _once(count: int) -> Int[Counts, "1 R"]:
    """Every draw once: the sample itself."""
    return np.ones((1, count), dtype=np.int64)


def _of_pairs(products: Float[Array, "R R"], counts: Int[Counts, "N R"]) -> Float[Array, "N"]:
    """The mean over pairs of different draws; NaN where a resample has one draw only."""
    squares = counts.astype(float) ** 2
    sums = ((counts @ products) * counts).sum(-1) - squares @ np.diag(products)
    pairs = counts.sum(-1) ** 2 - squares.sum(-1)
    return np.divide(sums, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _of_each(products: Float[Array, "R R"], counts: Int[Counts, "N R"]) -> Float[Array, "N"]:
    """The mean over draws with themselves."""
    found: Array = counts @ np.diag(products) / counts.sum(-1)
    return found


def _root(squares: Float[Array, "N"]) -> Float[Array, "N"]:
    """NaN where a squared length is not above 0."""
    return np.sqrt(np.where(squares > 0, squares, np.nan))
