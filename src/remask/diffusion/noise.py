"""Noise is data: the random numbers that decide a corruption, made per sample and carried in the batch.

Everything is drawn from (seed, epoch, sample index), so a sample meets the same noise on 1 rank or 64, after a resume,
beside any other rows, and under every method being compared (common random numbers).

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from remask.diffusion.rows import Rows
from remask.diffusion.times import MIN_TIME
from remask.errors import UserError

GOLDEN_RATIO = (5**0.5 - 1) / 2
STREAMS = {
    "mask": 0x0,
    "control": 0x1,
    "superset": 0x2,
    "times": 0x7,
    "shift": 0x9,
    "prompts": 0x9,
    "rows": 0x0D,
    "answers": 0x0E,
}
"""The purposes of random numbers: `stream` gives each purpose a sequence that no other shares. The values are part of
every result."""


@dataclass(frozen=True)
class Noise(Rows):
    """Noise holds the random numbers of a batch. Numbers outside a row's response are never read.

    tau: where in the chain each token stands, in [0, 1): equal over a row, or over a block of it. A `times.Schedule`
    makes it a time t, which is the rate of uniform masking.
    u: one uniform number per token: token i is masked when u_i < p_i.
    s: a second uniform number per row (LIFT's superset), or None.
    v: a second uniform number per token (the permuted control), or None.
    """

    tau: Float[Tensor, "B L"]
    u: Float[Tensor, "B L"]
    s: Float[Tensor, "B"] | None = None
    v: Float[Tensor, "B L"] | None = None

    BLANK: ClassVar[Mapping[str, float]] = {"u": 1.0, "v": 1.0}  # never masked

    @classmethod
    def at(
        cls,
        t: Float[Tensor, "B"],
        u: Float[Tensor, "B L"],
        s: Float[Tensor, "B"] | None = None,
        v: Float[Tensor, "B L"] | None = None,
    ) -> Noise:
        """Return the noise of rows at given times t of the linear schedule, each the same over its row."""
        tau = (t.double() - MIN_TIME) / (1 - MIN_TIME)
        return cls(tau[:, None].expand(u.shape), u, s, v)

    def per_block(self, block: Int[Tensor, "B L"]) -> Noise:
        """Return the noise with one τ for each block of a row, stratified over the blocks: the fractional part of τ +
        j·φ in block j.
        """
        return replace(self, tau=(self.tau.double() + block * GOLDEN_RATIO) % 1.0)

    @property
    def row_tau(self) -> Float[Tensor, "B"]:
        """Return the τ of each row; all tokens of a row must have the same."""
        return self.tau.double().amax(-1).clamp(0, 1 - 1e-9)


@dataclass(frozen=True)
class RowNoise:
    """One sample's noise before collation: `u` and `v` are arrays [n] over its n response tokens, `tau` and `s` are
    numbers.
    """

    tau: float
    s: float
    u: np.ndarray
    v: np.ndarray


def stream(name: str, *key: int) -> np.random.Generator:
    """Return the random numbers of one purpose, as a function of the key (seed first)."""
    return np.random.default_rng([*key, STREAMS[name]])


def low_discrepancy_place(seed: int, visit: int, shift: float = 0.0) -> float:
    """Return τ_n = frac(u₀ + n·φ + shift), with φ the golden ratio and u₀ from the seed: consecutive visits are
    stratified.

    `visit` counts the samples drawn since the start of training, over all ranks. Two parts of the sequence, and the
    sequences of two seeds, differ by a constant: what is to be drawn anew needs another shift (`drawn_shift`).
    """
    return float(low_discrepancy_places(seed, np.array([visit]), shift)[0])


def low_discrepancy_places(seed: int, visits: NDArray[np.int64], shift: float = 0.0) -> NDArray[np.floating]:
    """Return the `low_discrepancy_place` of each of many visits."""
    return (_first_place(seed) + visits * GOLDEN_RATIO + shift) % 1.0


def drawn_shift(*key: int) -> float:
    """Return a number in [0, 1) that is uniform over keys and a function of the key."""
    return float(stream("shift", *key).random())


@cache
def _first_place(seed: int) -> float:
    """u₀."""
    return float(stream("times", seed).random())


def row_noise(seed: int, epoch: int, index: int, visit: int, length: int, shift: float = 0.0) -> RowNoise:
    """Draw the noise of sample `index` in `epoch`, for `length` response tokens; τ is that of the visit, shifted.

    A longer response gets the same numbers and then more: extending a row with EOS changes nothing before.
    """
    if min(seed, epoch, index, visit) < 0:
        raise UserError(
            f"seed {seed}, epoch {epoch}, index {index}, visit {visit}: noise is not drawn from numbers below 0",
            mend="give 0 or more",
        )
    u = stream("mask", seed, epoch, index).random(length, dtype=np.float32)
    v = stream("control", seed, epoch, index).random(length, dtype=np.float32)
    s = float(stream("superset", seed, epoch, index).random())
    return RowNoise(low_discrepancy_place(seed, visit, shift), s, u, v)


def collate_noise(rows: list[RowNoise], starts: list[int], length: int) -> Noise:
    """Lay rows of noise into [B, L], each from where its response starts. Elsewhere u = 1: never masked."""
    tau = np.zeros((len(rows), length))
    u = np.ones((len(rows), length), dtype=np.float32)
    v = np.ones((len(rows), length), dtype=np.float32)
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        tau[b, start : start + len(row.u)] = row.tau
        u[b, start : start + len(row.u)] = row.u
        v[b, start : start + len(row.v)] = row.v
    return Noise(
        tau=torch.from_numpy(tau),
        u=torch.from_numpy(u),
        s=torch.tensor([row.s for row in rows], dtype=torch.float32),
        v=torch.from_numpy(v),
    )
