"""The likelihood of the way an answer was written: each token on the canvas that the sampler had before it wrote it.

A trajectory writes some tokens at each step, so log p of it is Σ_t Σ_{i written at t} log p(x_i | the tokens written
before t). The step map (`Canvas.written`) says when each token was written; steps may be scored together to save
forwards, on the canvas before the first of them (TraceRL, arXiv 2509.06949; d2, arXiv 2509.21474).

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.diffusion.corruption import Canvas, apply_mask
from remask.diffusion.likelihood import Combine, Draws, Estimator, View, Views, scored_tokens
from remask.diffusion.noise import Noise
from remask.errors import UserError


def total(values: Sequence[Float[Tensor, "B L"]], draws: Draws = ()) -> Float[Tensor, "B L"]:
    """Return the sum over draws, in their order."""
    found = torch.zeros_like(values[0])
    for value in values:
        found = found + value
    return found


def no_views(batch: Canvas, noise: Noise, mask_id: int) -> tuple[View, ...]:
    """Raise UserError: a trajectory's views follow from its steps, not from noise."""
    raise UserError("a trajectory has no views of a noise draw", mend="use Trajectory.draws")


@dataclass(frozen=True)
class Trajectory(Estimator):
    """An estimator whose draws are the steps of the answer's own trajectory. Noise has no say in it.

    run: so many distinct steps are scored together. segments: in place of that, the trajectory is cut into so many
    parts of equally many steps; 0 leaves it to run. Of a block model the steps of each block are counted by themselves,
    and all blocks are read in one pass.
    """

    views: Views = no_views
    combine: Combine = total
    run: int = 1
    segments: int = 0

    def draws(self, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
        """Return a view for each part of the trajectory. Raise UserError where the batch has no step map."""
        if batch.written is None:
            raise UserError(
                "the rows do not say at which step their tokens were written",
                mend="score answers that were sampled: a trajectory is the sampler's",
            )
        scored = scored_tokens(batch) & (batch.written >= 0)
        part = parts_of(batch.written, scored, batch.block, run=self.run, segments=self.segments)
        count = max(1, int(torch.where(scored, part, -1).max()) + 1)
        return [(self._view(batch, scored, part, number, mask_id),) for number in range(count)]

    def shares(self, batch: Canvas, draws: Draws, *, of_views: bool = False) -> Float[Tensor, "B L"]:
        """Return 1 for each token that a view scores, or with of_views one part of the tokens scored in its view."""
        found = torch.zeros(batch.ids.shape, device=batch.ids.device)
        for (view,) in draws:
            size = view.scored.sum(-1, keepdim=True) if of_views else 1
            found = torch.where(view.scored, 1 / size, found)
        return found

    def _view(
        self, batch: Canvas, scored: Bool[Tensor, "B L"], part: Int[Tensor, "B L"], number: int, mask_id: int
    ) -> View:
        hidden = (scored & (part >= number)) | (batch.corruptible & ~scored)
        shown = apply_mask(batch.ids, hidden, mask_id)
        return View(shown, scored & (part == number), torch.ones(batch.ids.shape, device=batch.ids.device))


def parts_of(
    written: Int[Tensor, "B L"],
    scored: Bool[Tensor, "B L"],
    block: Int[Tensor, "B L"] | None,
    *,
    run: int = 1,
    segments: int = 0,
) -> Int[Tensor, "B L"]:
    """Return the part of its trajectory that each scored token belongs to, from 0; 0 for the others.

    run: distinct steps of a part. segments: parts of ⌊T/N⌋ or ⌈T/N⌉ of the row's T steps, cut at ⌊iT/N⌋;
    those in which nothing was written are left out.
    """
    part = torch.zeros_like(written)
    for row in range(len(written)):
        places = scored[row].nonzero()[:, 0]
        if not len(places):
            continue
        steps = written[row, places]
        if segments:
            segment = ((steps + 1) * segments - 1).div(int(steps.max()) + 1, rounding_mode="floor")
            part[row, places] = segment.unique(return_inverse=True)[1]
            continue
        blocks = torch.zeros_like(steps) if block is None else block[row, places]
        for number in blocks.unique().tolist():
            members = places[blocks == number]
            rank = written[row, members].unique(return_inverse=True)[1]
            part[row, members] = rank // run
    return part
