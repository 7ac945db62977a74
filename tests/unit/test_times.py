"""From uniform numbers to masking rates: schedules by hand, and what their weights leave unchanged."""

from __future__ import annotations

import math

import pytest
import torch

from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.noise import Noise
from remask.diffusion.objective import Objective, corrupt, token_weights
from remask.diffusion.times import LINEAR, MIN_TIME, Schedule
from remask.errors import UserError

TAU = torch.tensor([0.0, 0.5, 2 / 3, 1.0], dtype=torch.float64)


def test_rates_by_hand() -> None:
    """1 − cos(π/4) = 0.2929, 1 − cos(π/3) = 0.5; in a range [0.2, 0.6] that is 0.2 + 0.4·f."""
    assert LINEAR.rate(TAU).tolist() == pytest.approx([0.001, 0.5005, 0.667, 1.0], abs=1e-6)
    cosine = Schedule("cosine", 0.2, 0.6).rate(TAU)
    assert cosine.tolist() == pytest.approx([0.2, 0.2 + 0.4 * 0.292893, 0.4, 0.6], abs=1e-6)
    assert cosine.dtype == torch.float32


def test_the_density_is_the_slope_of_the_shape() -> None:
    assert LINEAR.weight(TAU) is None
    schedule, step = Schedule("cosine", 0.2, 0.6), 1e-4
    slope = (schedule.rate(TAU[1:3] + step).double() - schedule.rate(TAU[1:3] - step).double()) / (2 * step) / 0.4
    density = schedule.weight(TAU)
    assert density is not None
    assert density[1:3].tolist() == pytest.approx(slope.tolist(), rel=1e-2)
    assert density[2].item() == pytest.approx(math.pi / 2 * math.sin(math.pi / 3), rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_both_shapes_have_the_same_expected_loss(name: str) -> None:
    """E_τ[f′(τ)·E_m[m·ce(t)/t]] = ∫ ce(t) dt, here with ce(t) = t²: 1/3."""
    schedule = Schedule(name)  # type: ignore[arg-type]
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t = schedule.rate(tau).double()
    density = schedule.weight(tau)
    loss = t * (1 / t) * t.square() * (1.0 if density is None else density.double())
    assert loss.mean().item() == pytest.approx(1 / 3, abs=1e-3)


def test_a_time_for_each_token_masks_each_at_its_own_rate() -> None:
    """Two blocks of two tokens, at τ = 0.2 and 0.8: u = 0.5 is masked in the second alone, at the weight f′(τ)/t."""
    response = torch.ones(1, 4, dtype=torch.bool)
    canvas = Canvas(torch.tensor([[5, 6, 7, 8]]), response, response, response)
    noise = Noise(torch.tensor([[0.2, 0.2, 0.8, 0.8]]).double(), torch.full((1, 4), 0.5))
    for schedule in ("linear", "cosine"):
        objective = Objective(schedule=schedule)  # type: ignore[arg-type]
        corrupted: Corrupted = corrupt(objective, canvas, noise, 1)
        assert corrupted.ids.tolist() == [[5, 6, 1, 1]]
        weights = token_weights(objective, canvas, corrupted, torch.zeros(2))
        f, slope = (
            (0.8, 1.0) if schedule == "linear" else (1 - math.cos(0.4 * math.pi), math.pi / 2 * math.sin(0.4 * math.pi))
        )
        assert weights.tolist() == pytest.approx([slope / (MIN_TIME + (1 - MIN_TIME) * f)] * 2, rel=1e-5)


def test_a_known_time_comes_back_to_the_bit() -> None:
    t = torch.rand(1000, generator=torch.Generator().manual_seed(0)).clamp(min=MIN_TIME)
    assert torch.equal(LINEAR.rate(Noise.at(t, torch.rand(1000, 3)).tau)[:, 0], t)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 0.5), (0.6, 0.3), (0.1, 1.2)])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(UserError, match="masking rates from"):
        Objective(rate_low=low, rate_high=high)
