"""Diffusion by uniform noise, as DiffusionGemma is trained: tokens are replaced by others instead of masked.

One time t per row; each answer token is replaced with probability t by a token drawn from the whole vocabulary. The
decoder learns every token of one canvas of the answer, replaced or not, without weights, and the causal encoder the
next token of the clean row:

    loss = mean ce over the canvas's tokens + λ · mean next-token ce of prompt and answer

Nothing here draws a random number. The loss is no bound on the likelihood: that of uniform noise has other weights.

Shapes: B batch, L length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.choices import TimePerName, WeightName
from remask.diffusion.corruption import Canvas, Corrupted, bernoulli_mask, uniform_rate
from remask.diffusion.noise import Noise
from remask.diffusion.objective import Objective
from remask.errors import UserError

FIXED = ("rate", "weight", "normaliser", "time_per", "complement", "signal", "transform", "reference", "schedule")
"""The choices of other objectives that this one does not leave open."""


@dataclass(frozen=True)
class UniformObjective(Objective):
    """The objective of models whose noise replaces tokens by others.

    self_conditioning: the share of rows that are read twice, the second time in the light of the first. encoder: λ, the
    weight of the encoder's loss. Of an `Objective`'s choices only the range of times is open.
    """

    weight: WeightName = "none"
    time_per: TimePerName = "row"
    self_conditioning: float = 0.5
    encoder: float = 1.0

    masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = type(self).__dataclass_fields__
        if said := [name for name in FIXED if getattr(self, name) != fields[name].default]:
            raise UserError(
                f"{', '.join(said)}: not a choice of an objective that replaces tokens by others",
                mend="its choices are rate_low, rate_high, self_conditioning and encoder",
            )
        if not 0 <= self.self_conditioning <= 1:
            raise UserError(f"self_conditioning = {self.self_conditioning}", mend="give a number in [0, 1]")
        if not self.encoder >= 0:
            raise UserError(f"encoder = {self.encoder}", mend="give 0 or more")


@dataclass(frozen=True)
class Chosen:
    """The choice that a row's one further uniform number makes. canvas [B, L]: the tokens that the decoder learns.
    conditioned [B]: whether the row is read twice.
    """

    canvas: Bool[Tensor, "B L"]
    conditioned: Bool[Tensor, "B"]


def chosen(objective: UniformObjective, canvas: Canvas, noise: Noise) -> Chosen:
    """Return the canvas of each row that is learned, all being alike, and whether the row is conditioned on itself.

    `canvas.block` has the numbers of the answer's canvases. The coin is [s < p], and where s lies in its side of [0, 1)
    is uniform again. Raises UserError where the numbers are missing.
    """
    if noise.s is None or canvas.block is None:
        raise UserError("this objective needs Noise.s and the canvases' numbers", mend="pass full noise and blocks")
    p, s = objective.self_conditioning, noise.s.double()
    conditioned = s < p
    place = torch.where(conditioned, s / max(p, 1e-9), (s - p) / max(1 - p, 1e-9)).clamp(0, 1 - 1e-9)
    count = torch.where(canvas.corruptible, canvas.block + 1, 0).amax(-1)
    number = (place * count).long()
    return Chosen(canvas.corruptible & (canvas.block == number[:, None]), conditioned)


def replaced(objective: UniformObjective, canvas: Canvas, noise: Noise, vocabulary: int) -> Corrupted:
    """Return the rows with answer tokens replaced, at one time a row: token i where u_i < t, by the token that v_i
    draws from the vocabulary. `Corrupted.mask` says which were. Raises UserError where `noise.v` is missing.
    """
    if noise.v is None:
        raise UserError("uniform noise needs Noise.v", mend="make the noise with row_noise")
    time = objective.times.rate(noise.tau)
    rate = uniform_rate(time, canvas.corruptible)
    mask = bernoulli_mask(noise.u, rate, canvas.corruptible)
    others = (noise.v.double() * vocabulary).long().clamp(max=vocabulary - 1)
    return Corrupted(torch.where(mask, others, canvas.ids), mask, rate, time, None, None)


def next_tokens(canvas: Canvas, fill_id: int) -> Bool[Tensor, "B L"]:
    """Return the clean tokens that the encoder learns: those of prompt and answer but the row's first. Of what fills
    the last canvas only the first EOS is one: an encoder reads nothing behind a text's end. A row without an answer has
    none.
    """
    own = canvas.attended & (canvas.ids != fill_id)
    column = torch.arange(canvas.ids.shape[1], device=canvas.ids.device)
    last: Int[Tensor, "B 1"] = torch.where(own, column, -1).amax(-1, keepdim=True)
    learned = canvas.attended & (column <= last + 1) & canvas.corruptible.any(-1, keepdim=True)
    learned[:, 1:] &= canvas.attended[:, :-1]
    learned[:, 0] = False
    return learned


def shares(sums: Float[Tensor, "2"], counts: Float[Tensor, "2"], encoder: float) -> dict[str, float]:
    """Return the loss and its two parts, from the sums and numbers of the decoder's tokens and the encoder's."""
    diffusion, causal = (sums / counts.clamp(min=1)).tolist()
    return {"loss": diffusion + encoder * causal, "diffusion": diffusion, "encoder": causal}
