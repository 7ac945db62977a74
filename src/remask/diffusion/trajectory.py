"""The likelihood of the way an answer was written: each token on the canvas that the sampler had before it wrote it.

A trajectory writes some tokens at each step, so log p of it is Σ_t Σ_{i written at t} log p(x_i | the tokens written
before t). The step map (`Canvas.written`) says when each token was written; steps may be scored together to save
forwards, on the canvas before the first of them (TraceRL, arXiv 2509.06949; d2, arXiv 2509.21474), or only some of the
steps, drawn anew each time (AGRPO, arXiv 2510.04019). In place of the sampler's steps a fixed order may be scored: from
left to right, a token a step (JustGRPO, arXiv 2601.15165). Or each part is scored with all others shown: the
pseudo-likelihood Σ_i log p(x_i | all others), which SEPO's sum over neighbours comes to (arXiv 2502.01384).

Shapes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def written_steps(batch: Canvas) -> Int[Tensor, "B L"]:
    """Return the step of sampling that wrote each token. Raise UserError where the batch has no step map."""
    if batch.written is None:
        raise UserError(
            "the rows do not say at which step their tokens were written",
            mend="score answers that were sampled: a trajectory is the sampler's",
        )
    return batch.written


@dataclass(frozen=True)
class Trajectory(Estimator):
    """An estimator whose draws are the steps of the answer's own trajectory.

    steps: the step of each token, −1 where none wrote it. run: so many distinct steps are scored together. segments: in
    place of that, the trajectory is cut into so many parts of equally many steps; 0 leaves it to run. pick: so many of
    the parts are scored, which noise picks (`picked`); 0 takes all, and noise has no say. alone: a view hides its own
    part only, and not what came later. Of a block model the steps of each block are counted by themselves, and all
    blocks are read in one pass.
    """

    views: Views = no_views
    combine: Combine = total
    steps: Callable[[Canvas], Tensor] = written_steps
    run: int = 1
    segments: int = 0
    pick: int = 0
    alone: bool = False

    def draws(self, batch: Canvas, noise: Sequence[Noise], mask_id: int) -> Draws:
        """Return a view for each part of the trajectory that is scored. Raise UserError where the batch has no step
        map.
        """
        written = self.steps(batch)
        scored = scored_tokens(batch) & (written >= 0)
        part = parts_of(written, scored, batch.block, run=self.run, segments=self.segments)
        count = torch.where(scored, part + 1, 0).amax(-1)
        taken = picked(count, self.pick, noise[0].row_tau) if self.pick else every(count)
        return [(self._view(batch, scored, part, number[:, None], mask_id),) for number in taken.unbind(1)]

    def shares(self, batch: Canvas, draws: Draws, *, of_views: bool = False) -> Float[Tensor, "B L"]:
        """Return 1 for each token that a view scores, or with of_views one part of the tokens scored in its view."""
        found = torch.zeros(batch.ids.shape, device=batch.ids.device)
        for (view,) in draws:
            size = view.scored.sum(-1, keepdim=True) if of_views else 1
            found = torch.where(view.scored, 1 / size, found)
        return found

    def _view(
        self,
        batch: Canvas,
        scored: Bool[Tensor, "B L"],
        part: Int[Tensor, "B L"],
        number: Int[Tensor, "B 1"],
        mask_id: int,
    ) -> View:
        own = scored & (part == number)
        hidden = (own if self.alone else scored & (part >= number)) | (batch.corruptible & ~scored)
        shown = apply_mask(batch.ids, hidden, mask_id)
        return View(shown, own, torch.ones(batch.ids.shape, device=batch.ids.device))


def every(count: Int[Tensor, "B"]) -> Int[Tensor, "B P"]:
    """Return the numbers of all parts, as many as the longest trajectory has and one at least."""
    most = max(1, int(count.max()))
    return torch.arange(most, device=count.device).expand(len(count), most)


def picked(count: Int[Tensor, "B"], pick: int, u: Float[Tensor, "B"]) -> Int[Tensor, "B P"]:
    """Return `pick` parts of each row's, ⌊(k + u)/pick · count⌋ with u ∈ [0, 1): different ones, each as likely as any
    other. All are taken of a row that has no more; what stands behind them is the number of no part.
    """
    number = every(count.clamp(max=pick))
    spread = ((number + u[:, None]) / pick * count[:, None]).long()
    return torch.where(count[:, None] > pick, torch.minimum(spread, count[:, None] - 1), number)


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
