"""Intervals, paired differences and relative gains of scores (numpy only).

Sizes: S training seeds, P problems. A score matrix is [S, P]: row s is one trained model, column p one problem that
every row answered. Scores are shares in [0, 1] (accuracy: 0 or 1); means and differences are in the same unit.

How far these intervals can be trusted
    Problems and seeds are two crossed sources of chance, so both axes are resampled, drawing k−1 of k (drawing k of k
    would give only (k−1)/k of the variance; Rao and Wu 1988). Resampling both counts the noise of a single answer,
    which is neither the problem's nor the seed's, up to three times (Owen 2007); the draws are therefore scaled about
    their mean to the variance that the two-way analysis of variance gives (`_variance`). The 95% intervals then cover
    93–97% of the time in simulation from 8 problems on, with one exception: where the seeds are the larger part of the
    noise, two or three rows cannot show how far a fourth may lie, and the cover falls to about 75% (S = 2), 85% (3),
    90% (5). With one seed nothing is known of the seeds: the interval is one for *these* trained models only; P − 1
    degrees of freedom are all it has, and a difference of right and wrong answers is held to McNemar's test as well.
    `tests/unit/test_statistics.py` measures all of this.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from remask.errors import UserError

Scores = NDArray[np.float64]

RESAMPLES = 10_000
CHUNK = 2_000_000
"""The most cells of one resampling block: it bounds memory, whatever the number of problems."""


@dataclass(frozen=True)
class Interval:
    """An interval is a mean and its confidence interval, over `n` problems."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A difference is the mean of a minus the mean of b over `n` shared problems; `seeds` is the smaller number of
    seeds of the two sides.
    """

    mean: float
    low: float
    high: float
    p_value: float
    n: int
    seeds: int

    @property
    def found(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class RelativeGain:
    """A gain in shares (0.026 is 2.6 %): over the baseline's score, and over the baseline's gain on the
    starting model.
    """

    over_score: float | None
    over_delta: float | None


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's interval of a share k/n: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z =
    Φ⁻¹((1+level)/2).

    Raises UserError where n < 1 or `correct` is not in 0…n.
    """
    _check_level(level)
    if n < 1 or not 0 <= correct <= n:
        raise UserError(f"no share can be made of {correct} correct out of {n}", mend="give 0 ≤ correct ≤ n and n ≥ 1")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    p, z2 = correct / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n one end equals p exactly; rounding must not push it past p.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def mean_interval(
    values: ArrayLike,
    level: float = 0.95,
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the percentile bootstrap interval of the mean of one run's scores [P], over problems."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise UserError(
            f"one run's scores are a list, these have shape {scores.shape}", mend="use cluster_interval for several"
        )
    return cluster_interval(scores[None, :], level, seed=seed, resamples=resamples)


def cluster_interval(
    scores: ArrayLike,
    level: float = 0.95,
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return the percentile bootstrap interval of the mean of [S, P], resampling problems and seeds (see the head of
    this file).

    Where every score is 0, or every score is 1, a bootstrap has no width; Wilson's interval for P answers is given
    instead. A single problem, or one value everywhere, gives that value with no width.
    """
    _check_level(level)
    matrix = _matrix(scores)
    n = matrix.shape[1]
    first = float(matrix.flat[0])
    if (matrix == first).all():
        return wilson(int(first) * n, n, level) if first in (0.0, 1.0) else Interval(first, first, first, n)
    mean = float(matrix.mean())
    draws = _bootstrap([matrix], np.random.default_rng(seed), resamples)[:, 0]
    low, high = percentiles(_scaled(draws, mean, [matrix]), level)
    # A mean never leaves the scores' range; the stretch may, by a hair.
    return Interval(mean, max(low, float(matrix.min())), min(high, float(matrix.max())), n)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int | np.random.Generator = 0,
    paired_seeds: bool | None = None,
    limit: float = 1.0,
) -> Difference:
    """Return mean(a) − mean(b) for a [S_a, P], b [S_b, P] scored on the same problems in the same order.

    Each resample takes the same problems on both sides. Rows are paired too where `paired_seeds` is true (by default
    where S_a = S_b: row s of both was trained with the same seed, hence the same data order and noise); else each side
    resamples its own rows. The p-value is two-sided, from the bootstrap distribution moved to mean 0:

        p = (1 + #{|d* − d| ≥ |d|}) / (1 + resamples)

    Of one model against one, d* − d is divided by √(χ²/(P − 1)), which makes Student's distribution of a normal one,
    and where answers are right or wrong p is at least that of `mcnemar`.

    Interval and p-value never contradict each other: the percentiles of few problems are skewed and may leave 0 out
    where p finds nothing, or the other way round; then the interval reaches to 0, or p is 1 − level. Where every
    problem shows the same difference, a bootstrap has no width; `unseen_bounds` says what other problems could show.

    limit: the largest difference that there can be, 1 of shares. Where there is none, equal differences have no width.

    Raises UserError where the two sides differ in P, where P < 2, or where rows cannot be paired as asked.
    """
    _check_level(level)
    left, right = _matrix(a), _matrix(b)
    rows, other_rows, n = left.shape[0], right.shape[0], left.shape[1]
    paired_seeds = _paired(left, right, paired_seeds)
    arms = [left - right] if paired_seeds else [left, -right]
    mean = float(sum(arm.mean() for arm in arms))
    rng = np.random.default_rng(seed)
    draws = _scaled(_bootstrap(arms, rng, resamples).sum(axis=1), mean, arms)
    if np.ptp(draws) < 1e-12:
        bounds = (mean, mean, float(abs(mean) < 1e-12)) if limit == math.inf else unseen_bounds(mean, n, level)
        return Difference(mean, *bounds, n, min(rows, other_rows))
    one_each = rows == other_rows == 1
    if one_each:
        draws = mean + (draws - mean) / np.sqrt(rng.chisquare(n - 1, resamples) / (n - 1))
    low, high = (min(limit, max(-limit, end)) for end in percentiles(draws, level))
    # A resample that equals the observed difference up to rounding is as extreme as it, and counts.
    extreme = int((np.abs(draws - mean) >= abs(mean) - 1e-12).sum())
    p_value = (1 + extreme) / (1 + resamples)
    if one_each and np.isin(left - right, (-1.0, 0.0, 1.0)).all():
        p_value = max(p_value, mcnemar(int((left > right).sum()), int((left < right).sum())))
    if p_value >= 1.0 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0.0 <= high:
        p_value = 1.0 - level
    return Difference(mean, low, high, p_value, n, min(rows, other_rows))


def _paired(left: Scores, right: Scores, paired_seeds: bool | None) -> bool:
    """Whether rows are paired. Raises UserError where they cannot be, or where there are not the same problems."""
    rows, other_rows, n = left.shape[0], right.shape[0], left.shape[1]
    if n != right.shape[1]:
        raise UserError(
            f"a paired difference needs the same problems on both sides, got {n} and {right.shape[1]}",
            mend="evaluate both on the same problems",
        )
    if n < 2:
        raise UserError("a difference over one problem has no interval", mend="evaluate on more problems")
    if paired_seeds and rows != other_rows:
        raise UserError(f"{rows} seeds cannot be paired with {other_rows}", mend="leave paired_seeds out")
    return rows == other_rows if paired_seeds is None else paired_seeds


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided mid-p of McNemar's exact test (Fagerland, Lydersen and Laake 2013): of so many problems that
    only one of two models solved, each is either's with probability ½; an outcome as extreme as the observed one counts
    half.
    """
    n, k = wins + losses, max(wins, losses)
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    chance = np.exp(log_factorial[n] - log_factorial[k:] - log_factorial[n - k :: -1] - n * math.log(2))
    return float(min(1.0, 2 * chance[1:].sum() + chance[0]))


def unseen_bounds(difference: float, n: int, level: float) -> tuple[float, float, float]:
    """Return (low, high, p) of a mean difference d that all of n problems show alike.

    Problems that show another one, in [−1, 1], are at most a share q = 1 − ((1−level)/2)^(1/n) of all: were they more,
    n problems without any would be rarer than (1−level)/2. Hence d − q(1+d) … d + q(1−d), the "rule of three" for what
    was never observed. p is the sign test's, 2·2⁻ⁿ, and never says more than the interval.
    """
    share = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
    low, high = difference - share * (1.0 + difference), difference + share * (1.0 - difference)
    p_value = 1.0 if abs(difference) < 1e-12 else min(1.0, 2.0 * 0.5**n)
    return low, high, max(p_value, 1.0 - level) if low <= 0.0 <= high else p_value


def relative_gain(candidate: float, baseline: float, start: float | None = None) -> RelativeGain:
    """Return both meanings of "relative gain": (c − b)/b and (c − s)/(b − s) − 1 = (c − b)/(b − s).

    The first is None where b = 0; the second where there is no starting score s, or where the baseline did not gain
    on it (b ≤ s), which leaves nothing to take a share of.
    """
    over_score = None if baseline == 0.0 else (candidate - baseline) / baseline
    over_delta = None if start is None or baseline <= start else (candidate - start) / (baseline - start) - 1.0
    return RelativeGain(over_score, over_delta)


Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p-values corrected for their number m (Holm 1979): the k-th smallest times m − k + 1, never less than the
    one before, at most 1.
    """
    corrected: dict[Key, float] = {}
    floor = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = floor
    return corrected


def _bootstrap(arms: Sequence[Scores], rng: np.random.Generator, resamples: int) -> Scores:
    """Resampled means [resamples, arms]: each draw takes the same problems in every arm, and each arm's own seeds."""
    if resamples < 1:
        raise UserError(f"{resamples} resamples", mend="ask for at least 1; 10000 is usual")
    P = arms[0].shape[1]
    means = np.empty((resamples, len(arms)))
    for begin in range(0, resamples, step := max(1, CHUNK // P)):
        block = slice(begin, min(begin + step, resamples))
        size = block.stop - begin
        columns = resampled(rng, size, P)
        for k, arm in enumerate(arms):
            by_seed = columns @ arm.T  # [size, S]: each seed's mean over the drawn problems
            means[block, k] = (by_seed * resampled(rng, size, arm.shape[0])).sum(axis=1)
    return means


def _scaled(draws: Scores, mean: float, arms: Sequence[Scores]) -> Scores:
    """The draws, stretched about the mean to the standard deviation √`_variance`; no spread stays no spread."""
    spread = float(draws.std())
    if spread == 0.0:
        return draws
    return mean + (draws - mean) * (math.sqrt(_variance(arms)) / spread)


def _variance(arms: Sequence[Scores]) -> float:
    """Variance of the sum of the arms' means; arms share problems, not seeds.

        Var = Var_p(Σ_arms mean_s x_sp) / P  +  Σ_arms max(0, MS_seeds − MS_rest) / (S·P)

    The first term holds the noise of problems and of answers; the second, what seeds add beyond that of answers.
    """
    P = arms[0].shape[1]
    total = float(np.sum([arm.mean(axis=0) for arm in arms], axis=0).var(ddof=1)) / P if P > 1 else 0.0
    for arm in arms:
        S = arm.shape[0]
        if S > 1:
            by_seed = arm.mean(axis=1, keepdims=True)
            rest = arm - by_seed - arm.mean(axis=0, keepdims=True) + arm.mean()
            mean_square_rest = float((rest**2).sum()) / ((S - 1) * (P - 1)) if P > 1 else 0.0
            total += max(0.0, P * float(by_seed.var(ddof=1)) - mean_square_rest) / (S * P)
    return total


def resampled(rng: np.random.Generator, resamples: int, k: int) -> Scores:
    """Return the shares [resamples, k] that each of k units gets when k−1 are drawn with replacement; rows sum to 1."""
    if k == 1:
        return np.ones((resamples, 1))
    drawn = rng.integers(0, k, size=(resamples, k - 1))
    drawn += np.arange(resamples)[:, None] * k
    counts = np.bincount(drawn.ravel(), minlength=resamples * k)
    return counts.reshape(resamples, k) / (k - 1)


def percentiles(draws: Scores, level: float) -> tuple[float, float]:
    """Return the interval (low, high) of this level as quantiles of the draws."""
    low, high = np.quantile(draws, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _matrix(scores: ArrayLike) -> Scores:
    """The scores as [S, P] float64. Raises UserError for another shape, no scores, or a score that is not finite."""
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise UserError(f"scores of shape {matrix.shape}", mend="give them as [seeds, problems]")
    if not np.isfinite(matrix).all():
        raise UserError("a score is NaN or infinite", mend="evaluate again; every problem needs a finite score")
    return matrix


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise UserError(f"a confidence level of {level}", mend="give a share between 0 and 1, such as 0.95")
