"""Statistics of tokens that come in rows (numpy only). Tokens of one row hang together, so rows are what is resampled.

A token's statistic is reduced to sums per row, and a resample is a weight per row: means, differences, rank
correlations and shares of pairs are then formed for all resamples at once, and on the same resamples.

Sizes: R rows, N tokens, K resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from remask.errors import UserError
from remask.evaluation.statistics import Interval, Scores, percentiles, resampled, unseen_bounds, wilson

RESAMPLES = 2000
LEAST_ROWS = 2
"""The number of rows below which there is no interval."""

Sums = tuple[ArrayLike, ArrayLike]
"""The (total [R], count [R]) of a quantity over some of each row's tokens."""


class RowBootstrap:
    """A bootstrap of K resamples of R rows, the same for everything asked of it.

    Raises UserError where there are fewer than two rows.
    """

    def __init__(self, rows: int, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95) -> None:
        if rows < LEAST_ROWS:
            raise UserError(f"{rows} row{'' if rows == 1 else 's'} give no interval", mend="look at more rows")
        self.rows, self.level = rows, level
        self.draws = resampled(np.random.default_rng(seed), resamples, rows)

    def sums(self, values: ArrayLike, row: ArrayLike) -> Scores:
        """Return the total of values [N] in each row [R], given the row of each."""
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(np.asarray(row), weights=weights, minlength=self.rows).astype(np.float64)

    def mean(self, of: Sums) -> Interval | None:
        """Return Σ total / Σ count, or None where nothing was counted."""
        total, count = (np.asarray(part, dtype=np.float64) for part in of)
        if not count.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (self.draws @ total) / (self.draws @ count)
        return self._interval(float(total.sum() / count.sum()), drawn, count)

    def share(self, of: Sums) -> Interval | None:
        """Return the mean of values that are 0 or 1. Where all are 0, or all are 1, a bootstrap has no width: Wilson's
        interval is given instead, for one answer a row.
        """
        found = self.mean(of)
        if found is None or found.mean not in (0.0, 1.0):
            return found
        return wilson(int(found.mean) * found.n, found.n, self.level)

    def difference(self, a: Sums, b: Sums) -> Interval | None:
        """Return the mean of a minus the mean of b, or None where one of them counts nothing."""
        parts = [np.asarray(part, dtype=np.float64) for part in (*a, *b)]
        if not parts[1].any() or not parts[3].any():
            return None
        value = parts[0].sum() / parts[1].sum() - parts[2].sum() / parts[3].sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            left, right = ((self.draws @ parts[i]) / (self.draws @ parts[i + 1]) for i in (0, 2))
        return self._interval(float(value), left - right, parts[1])

    def share_difference(self, a: Sums, b: Sums) -> Interval | None:
        """Return the `difference` of values that are 0 or 1. Where every row shows the same one, a bootstrap has no
        width: what other rows could show is given instead.
        """
        found = self.difference(a, b)
        if found is None or not found.high - found.low < 1e-12:
            return found
        return Interval(found.mean, *unseen_bounds(found.mean, found.n, self.level)[:2], found.n)

    def auc(self, scores: ArrayLike, positive: ArrayLike, row: ArrayLike) -> Interval | None:
        """Return P(score of a positive token > score of another) + ½ P(equal), over all pairs: the area under the ROC
        curve.

        2·AUC − 1 is Cliff's δ. None where all tokens are positive, or none is.
        """
        scores, positive, row = np.asarray(scores), np.asarray(positive, dtype=bool), np.asarray(row)
        own, other = self.sums(positive, row), self.sums(~positive, row)
        if not own.any() or not other.any():
            return None
        won = _pairs_won(scores, positive, row, self.rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = ((self.draws @ won) * self.draws).sum(1) / ((self.draws @ own) * (self.draws @ other))
        return self._interval(float(won.sum() / (own.sum() * other.sum())), drawn, own)

    def rank_correlation(self, x: ArrayLike, y: ArrayLike, row: ArrayLike) -> Interval | None:
        """Return Spearman's ρ, ties at their mean rank. Resamples keep the ranks that tokens have among all of them.

        None where x or y is the same everywhere.
        """
        a, b = ranks(x), ranks(y)
        if a.std() == 0 or b.std() == 0:
            return None
        # Ranks about their mean, so that the moments below do not cancel.
        a, b = a - a.mean(), b - b.mean()
        moments = [self.sums(v, row) for v in (np.ones_like(a), a, b, a * a, b * b, a * b)]

        def correlation(n: Scores, sa: Scores, sb: Scores, saa: Scores, sbb: Scores, sab: Scores) -> Scores:
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = np.sqrt((saa / n - (sa / n) ** 2) * (sbb / n - (sb / n) ** 2))
                return np.asarray((sab / n - sa * sb / n**2) / spread)

        value = float(correlation(*(np.atleast_1d(m.sum()) for m in moments))[0])
        return self._interval(value, correlation(*(self.draws @ m for m in moments)), moments[0])

    def _interval(self, value: float, drawn: Scores, count: Scores) -> Interval:
        """With its percentile interval; a quantity that fewer than two rows hold has none (nan)."""
        n = int((count > 0).sum())
        kept = drawn[np.isfinite(drawn)]  # resamples without any such token say nothing of it
        if n < LEAST_ROWS or not len(kept):
            return Interval(value, float("nan"), float("nan"), n)
        return Interval(value, *percentiles(kept, self.level), n)


def ranks(values: ArrayLike) -> Scores:
    """Return the rank of each value, 1 for the smallest; equal values share the mean of their ranks."""
    array = np.asarray(values)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _pairs_won(scores: NDArray, positive: NDArray, row: NDArray, rows: int) -> Scores:
    """[R, R]: pairs of a positive token of row r and another of row s in which the first scores higher, ties ½."""
    won = np.zeros((rows, rows))
    mine, my_row = scores[positive], row[positive]
    for s in range(rows):
        theirs = np.sort(scores[~positive & (row == s)])
        if len(theirs):
            below = (np.searchsorted(theirs, mine, "left") + np.searchsorted(theirs, mine, "right")) / 2
            won[:, s] = np.bincount(my_row, weights=below, minlength=rows)
    return won
