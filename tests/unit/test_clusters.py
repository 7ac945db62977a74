"""Statistics of tokens in rows: numbers by hand, and what intervals cover where rows differ."""

from __future__ import annotations

import numpy as np
import pytest

from remask.errors import UserError
from remask.evaluation.clusters import RowBootstrap, ranks


def test_means_are_over_tokens_not_over_rows() -> None:
    found = RowBootstrap(2).mean(([6.0, 1.0], [3, 1]))
    assert found is not None
    assert found.mean == 7 / 4
    assert (found.low, found.high) == (1.0, 2.0)  # one of two rows is drawn
    assert found.n == 2


def test_what_one_row_holds_has_no_interval_and_what_none_holds_no_value() -> None:
    bootstrap = RowBootstrap(3)
    found = bootstrap.mean(([0.0, 2.0, 0.0], [0, 1, 0]))
    assert found is not None
    assert found.mean == 2
    assert np.isnan(found.low)
    assert bootstrap.mean(([0.0] * 3, [0] * 3)) is None
    with pytest.raises(UserError, match="more rows"):
        RowBootstrap(1)


def test_a_share_of_none_or_of_all_still_has_a_width() -> None:
    bootstrap = RowBootstrap(4)
    none, every = bootstrap.share(([0.0] * 4, [5] * 4)), bootstrap.share(([5.0] * 4, [5] * 4))
    assert none is not None
    assert every is not None
    assert none.low == 0 < none.high < 1
    assert none.high == pytest.approx(1 - every.low)


def test_differences_pair_the_rows() -> None:
    """Rows differ much, the classes by 1 in each row: the difference has no spread."""
    base = np.array([0.0, 10.0, 50.0])
    found = RowBootstrap(3).difference((base + 1, [1, 1, 1]), (base, [1, 1, 1]))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_a_difference_of_shares_that_all_rows_show_alike_still_has_a_width() -> None:
    """Of four rows without a change, others may be a share of 1 − 0.025^¼; the fifth row holds no such token."""
    bootstrap, counts = RowBootstrap(5), [2, 4, 6, 2, 0]
    found = bootstrap.share_difference(([1, 2, 3, 0, 0], counts), ([1, 2, 3, 0, 0], counts))
    assert found is not None
    unseen = 1 - 0.025**0.25
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((0, -unseen, unseen, 4))
    a, b = ([2, 2, 3, 1, 0], counts), ([1, 2, 3, 0, 0], counts)
    assert bootstrap.share_difference(a, b) == bootstrap.difference(a, b)
    assert bootstrap.share_difference(([0] * 5, [0] * 5), b) is None


def test_pairs_are_counted_with_ties_as_halves() -> None:
    scores, positive = [3.0, 1.0, 2.0, 2.0, 0.0], [True, True, True, False, False]
    found = RowBootstrap(2).auc(scores, positive, [0, 0, 1, 1, 0])
    assert found is not None
    assert found.mean == pytest.approx((2 + 1 + 1.5) / 6)  # 3 beats both, 1 beats one, 2 beats one and ties one
    assert RowBootstrap(2).auc(scores, [True] * 5, [0, 0, 1, 1, 0]) is None


def test_rank_correlation_by_hand() -> None:
    assert ranks([5, 1, 5, 9]).tolist() == [2.5, 1, 2.5, 4]
    row = [0, 0, 1, 1]
    found = RowBootstrap(2).rank_correlation([1, 2, 3, 4], [10, 30, 20, 40], row)
    assert found is not None
    assert found.mean == pytest.approx(0.8)  # 1 − 6·(1 + 1)/(4·15)
    assert RowBootstrap(2).rank_correlation([1, 1, 1, 1], [1, 2, 3, 4], row) is None


def test_intervals_cover_where_rows_differ_more_than_their_tokens() -> None:
    """Tokens of a row are almost alike: counting them as independent would cover far less than 95 %."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        rows, row = rng.normal(size=25), np.repeat(np.arange(25), 10)
        values = rows[row] + 0.3 * rng.normal(size=250)
        bootstrap = RowBootstrap(25, resamples=400)
        found = bootstrap.mean((bootstrap.sums(values, row), bootstrap.sums(np.ones(250), row)))
        assert found is not None
        hits += found.low <= 0 <= found.high
        naive += abs(values.mean()) <= 1.96 * values.std() / 250**0.5
    assert 0.88 <= hits / 200 <= 0.99
    assert naive / 200 < 0.7
