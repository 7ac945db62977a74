"""Noise is data: the random numbers that decide a corruption, made per sample and carried in the batch.

Everything is drawn from (seed, epoch, sample index), so a sample meets the same noise on 1 rank or 64, after a resume,
beside any other rows, and under every method being compared (common random numbers).

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from remask.diffusion.rows import Rows
from remask.errors import UserError

GOLDEN_RATIO = (5**0.5 - 1) / 2
MIN_TIME = 1e-3
"""ε: times and masking rates live in [ε, 1] (docs/theory.md §1)."""


@dataclass(frozen=True)
class Noise(Rows):
    """The random numbers of a batch. Numbers outside a row's response are never looked at.

    t: time of each row, in [ε, 1].
    u: one uniform number per token: token i is masked when u_i < p_i.
    s: a second uniform number per row (LIFT's superset), or None.
    v: a second uniform number per token (the permuted control), or None.
    """

    t: Float[Tensor, "B"]
    u: Float[Tensor, "B L"]
    s: Float[Tensor, "B"] | None = None
    v: Float[Tensor, "B L"] | None = None

    BLANK: ClassVar[Mapping[str, float]] = {"u": 1.0, "v": 1.0}  # never masked


@dataclass(frozen=True)
class RowNoise:
    """One sample's noise before collation: `u`, `v` [n] over its n response tokens, `t`, `s` numbers."""

    t: float
    s: float
    u: np.ndarray
    v: np.ndarray


def low_discrepancy_time(seed: int, visit: int, shift: float = 0.0) -> float:
    """t_n = ε + (1 − ε)·frac(u₀ + n·φ + shift), φ the golden ratio, u₀ from the seed: consecutive visits are
    stratified.

    `visit` counts the samples drawn since the start of training, over all ranks. Two parts of the sequence, and the
    sequences of two seeds, differ by a constant: what is to be drawn anew needs a shift of its own (`drawn_shift`).
    """
    return float(low_discrepancy_times(seed, np.array([visit]), shift)[0])


def low_discrepancy_times(seed: int, visits: NDArray[np.int64], shift: float = 0.0) -> NDArray[np.floating]:
    """`low_discrepancy_time` of many visits."""
    return MIN_TIME + (1.0 - MIN_TIME) * ((_first_time(seed) + visits * GOLDEN_RATIO + shift) % 1.0)


def drawn_shift(*key: int) -> float:
    """Uniform in [0, 1), a function of the key."""
    return float(np.random.default_rng([*key, 0x9]).random())


@cache
def _first_time(seed: int) -> float:
    """u₀."""
    return float(np.random.default_rng([seed, 0x7]).random())


def row_noise(seed: int, epoch: int, index: int, visit: int, length: int, shift: float = 0.0) -> RowNoise:
    """The noise of sample `index` in `epoch`, for `length` response tokens; t is that of the visit, shifted.

    A longer response gets the same numbers and then more: extending a row with EOS changes nothing before.
    """
    if min(seed, epoch, index, visit) < 0:
        raise UserError(
            f"seed {seed}, epoch {epoch}, index {index}, visit {visit}: noise is not drawn from numbers below 0",
            mend="give 0 or more",
        )
    u = np.random.default_rng([seed, epoch, index, 0]).random(length, dtype=np.float32)
    v = np.random.default_rng([seed, epoch, index, 1]).random(length, dtype=np.float32)
    s = float(np.random.default_rng([seed, epoch, index, 2]).random())
    return RowNoise(low_discrepancy_time(seed, visit, shift), s, u, v)


def collate_noise(rows: list[RowNoise], starts: list[int], length: int) -> Noise:
    """Lay rows of noise into [B, L], each from where its response starts. Elsewhere u = 1: never masked."""
    u = np.ones((len(rows), length), dtype=np.float32)
    v = np.ones((len(rows), length), dtype=np.float32)
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        u[b, start : start + len(row.u)] = row.u
        v[b, start : start + len(row.v)] = row.v
    return Noise(
        t=torch.tensor([row.t for row in rows], dtype=torch.float32),
        u=torch.from_numpy(u),
        s=torch.tensor([row.s for row in rows], dtype=torch.float32),
        v=torch.from_numpy(v),
    )
