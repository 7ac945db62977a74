"""Noise is data: what depends on the sample alone, and how times spread over consecutive visits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remask.diffusion.noise import (
    Noise,
    RowNoise,
    collate_noise,
    drawn_shift,
    low_discrepancy_place,
    row_noise,
)
from remask.errors import UserError

numbers = st.integers(0, 2**31)


def test_times_step_by_the_golden_ratio() -> None:
    fractions = [low_discrepancy_place(0, n) for n in range(4)]
    steps = np.diff(fractions) % 1.0
    assert steps == pytest.approx([0.6180339887] * 3, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64, 100, 1000])
@pytest.mark.parametrize("first", [0, 17, 123_456])
def test_any_window_of_visits_is_stratified(n: int, first: int) -> None:
    """Three-gap theorem: n consecutive golden-ratio points leave no gap above 2/n (n uniform ones: about ln n / n)."""
    points = np.sort([low_discrepancy_place(5, first + i) for i in range(n)])
    gaps = np.diff(np.append(points, points[0] + 1))
    assert gaps.max() <= 2 / n


@given(seed=numbers, visit=st.integers(0, 10**12))
@settings(deadline=None)
def test_places_lie_between_zero_and_one(seed: int, visit: int) -> None:
    assert 0 <= low_discrepancy_place(seed, visit) < 1


def test_a_shift_moves_all_times_round_alike_and_shifts_are_uniform() -> None:
    plain, shifted = ([low_discrepancy_place(0, n, s) for n in range(50)] for s in (0.0, 0.3))
    assert (np.subtract(shifted, plain) % 1.0) == pytest.approx([0.3] * 50)
    drawn = np.sort([drawn_shift(0, rollout, number) for rollout in range(50) for number in range(8)])
    assert np.abs(drawn - (np.arange(400) + 0.5) / 400).max() < 0.08  # Kolmogorov and Smirnov's at 1 % of 400 numbers
    assert drawn_shift(3, 1) == drawn_shift(3, 1) != drawn_shift(3, 2)


def test_seeds_start_the_times_at_different_places() -> None:
    assert len({low_discrepancy_place(seed, 0) for seed in range(20)}) == 20


@given(seed=numbers, epoch=st.integers(0, 1000), index=numbers, length=st.integers(0, 70), more=st.integers(0, 70))
@settings(deadline=None)
def test_a_longer_response_gets_the_same_numbers_first(
    seed: int, epoch: int, index: int, length: int, more: int
) -> None:
    short = row_noise(seed, epoch, index, 3, length)
    long = row_noise(seed, epoch, index, 3, length + more)
    assert (short.tau, short.s) == (long.tau, long.s)
    assert np.array_equal(short.u, long.u[:length])
    assert np.array_equal(short.v, long.v[:length])
    assert len(long.u) == len(long.v) == length + more


def test_seed_epoch_and_index_each_change_the_numbers() -> None:
    drawn = [row_noise(*key, 0, 6) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({row.u.tobytes() for row in drawn}) == len({row.v.tobytes() for row in drawn}) == 4
    assert len({row.s for row in drawn}) == 4


def test_the_visit_sets_the_time_alone() -> None:
    first, second = row_noise(0, 0, 5, 10, 6), row_noise(0, 0, 5, 11, 6)
    assert first.tau != second.tau
    assert first.s == second.s
    assert np.array_equal(first.u, second.u)


def test_u_and_v_are_uniform_and_unrelated() -> None:
    row = row_noise(0, 0, 0, 0, 20_000)
    for numbers in (row.u, row.v):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert numbers.mean() == pytest.approx(0.5, abs=4 * 12**-0.5 / 20_000**0.5)
    assert abs(np.corrcoef(row.u, row.v)[0, 1]) < 4 / 20_000**0.5


@pytest.mark.parametrize("key", [(-1, 0, 0, 0), (0, -1, 0, 0), (0, 0, -1, 0), (0, 0, 0, -1)])
def test_negative_numbers_are_refused(key: tuple[int, int, int, int]) -> None:
    with pytest.raises(UserError, match="-1"):
        row_noise(*key, 4)


def test_collating_by_hand() -> None:
    a = RowNoise(0.25, 0.5, np.array([0.1, 0.2], np.float32), np.array([0.3, 0.4], np.float32))
    b = RowNoise(0.75, 0.9, np.array([0.5, 0.6, 0.7], np.float32), np.array([0.8, 0.9, 0.0], np.float32))
    noise = collate_noise([a, b], [1, 0], 4)
    assert noise.tau.tolist() == [[0.0, 0.25, 0.25, 0.0], [0.75, 0.75, 0.75, 0.0]]
    assert torch.equal(noise.s, torch.tensor([0.5, 0.9]))
    assert torch.equal(noise.u, torch.tensor([[1.0, 0.1, 0.2, 1.0], [0.5, 0.6, 0.7, 1.0]]))
    assert torch.equal(noise.v, torch.tensor([[1.0, 0.3, 0.4, 1.0], [0.8, 0.9, 0.0, 1.0]]))


def test_a_row_meets_the_same_noise_beside_any_batch_mates() -> None:
    rows = [row_noise(7, 2, index, 40 + index, 3 + index) for index in range(4)]
    together = collate_noise(rows, [2, 0, 1, 3], 10)
    backwards = collate_noise(rows[::-1], [3, 1, 0, 2], 10)
    for name in ("tau", "u", "s", "v"):
        assert torch.equal(getattr(together, name), getattr(backwards, name).flip(0))
    alone = collate_noise(rows[2:3], [0], 5)
    assert torch.equal(alone.u[0], together.u[2, 1:6])
    assert torch.equal(alone.tau[0], together.tau[2, 1:6])


def test_moving_noise_keeps_what_is_not_there() -> None:
    moved = Noise.at(torch.rand(2), torch.rand(2, 3)).to("cpu")
    assert moved.s is None
    assert moved.v is None
