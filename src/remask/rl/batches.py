"""From a rollout to the micro-batches of its updates: which rows, in which order, on which noise.

Shapes: N rows of the rollout, B rows of a micro-batch, W width, C canvas, K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise, drawn_shift, row_noise, stream
from remask.errors import UserError
from remask.rl.rollout import Rollout


@dataclass(frozen=True)
class Plan:
    """A plan says how a rollout of N rows becomes updates: `passes` (μ) over all rows, each in `minibatches` optimiser
    steps, whose rows the ranks share evenly and take `batch_size` at a time.
    """

    rows: int
    passes: int
    minibatches: int
    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.rows % (self.minibatches * self.world):
            raise UserError(
                f"a rollout of {self.rows} answers does not divide into {self.minibatches} minibatches "
                f"on {self.world} processes",
                mend="change rollout.prompts, rollout.completions or rollout.minibatches",
            )

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches of one optimiser step on one rank: its gradient accumulation."""
        return -(-(self.rows // self.minibatches // self.world) // self.batch_size)

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps of a rollout."""
        return self.passes * self.minibatches

    def members(self, order: np.ndarray) -> list[np.ndarray]:
        """Return this rank's micro-batches of one pass over the rows in `order`."""
        return [share for step in np.split(order, self.minibatches) for share in self.shares(step)]

    def shares(self, step: np.ndarray) -> list[np.ndarray]:
        """Return this rank's micro-batches of one optimiser step over these rows."""
        own = np.split(step, self.world)[self.rank]
        return [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]


@dataclass
class PolicyBatch:
    """A policy batch is one micro-batch: rows of a rollout, their noise (one for each draw), and how likely other
    models found them on it, where that is needed.

    advantage: that of each token. version: the optimiser steps behind the weights that wrote the rows; the policy has
    not moved since where it is the step's own number. old: what the policy that wrote them says of each token, draw by
    draw. reference: the reference model's likelihood. place: each row's place in the rollout.

    now and group are read before an optimiser step where answers are compared within their group (`rl.in_groups`): what
    the policy says of each token by then, draw by draw, and what its group says of each row.
    """

    canvas: Canvas
    noise: list[Noise]
    advantage: Float[Tensor, "B W"]
    counted: Bool[Tensor, "B"]
    version: int
    old: list[Tensor] | None = None
    reference: Float[Tensor, "B W"] | None = None
    place: Int[Tensor, "B"] | None = None
    now: list[Tensor] | None = None
    group: Float[Tensor, "B"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> PolicyBatch:
        """Return the batch with every tensor changed."""
        return replace(
            self,
            canvas=self.canvas.each(change),
            noise=[draw.each(change) for draw in self.noise],
            advantage=change(self.advantage),
            counted=change(self.counted),
            old=None if self.old is None else [change(value) for value in self.old],
            reference=None if self.reference is None else change(self.reference),
            place=None if self.place is None else change(self.place),
        )

    def to(self, device: torch.device) -> PolicyBatch:
        """Return the batch on that device."""
        return self.each(lambda value: value.to(device))


def batches_of(rollout: Rollout, plan: Plan, *, draws: int, fresh: bool, seed: int) -> Iterator[PolicyBatch]:
    """Yield this rank's micro-batches of one pass, or with `fresh` noise of all passes, in the order they are used.

    Rows are shuffled for every pass where it takes several optimiser steps. Without fresh noise later passes repeat the
    first.
    """
    for number in range(plan.passes if fresh else 1):
        order = np.arange(plan.rows)
        if plan.minibatches > 1:
            order = stream("answers", seed, rollout.number, number).permutation(plan.rows)
        for members in plan.members(order):
            rows = torch.from_numpy(members)
            batch = PolicyBatch(
                rollout.canvas.each(lambda value, rows=rows: value[rows]),  # type: ignore[misc]
                [_draw(rollout, members, plan, number, k, draws, seed) for k in range(draws)],
                rollout.advantage[rows],
                rollout.counted[rows],
                rollout.version,
                place=rows,
            )
            yield _rows(batch, torch.arange(len(rows)))


def shared_anew(ranks: Sequence[Sequence[PolicyBatch]], plan: Plan) -> list[PolicyBatch]:
    """Return this rank's micro-batches of what other ranks, any number of them, had left of a rollout. The rows of each
    optimiser step keep their order, and `plan` shares them out.
    """
    rows = plan.rows // plan.minibatches
    shared: list[PolicyBatch] = []
    steps = [_by_step(batches, rows // len(ranks)) for batches in ranks]
    for of_ranks in zip(*steps, strict=True):
        step = _joined([batch for of_rank in of_ranks for batch in of_rank])
        shared += [_rows(step, torch.from_numpy(members)) for members in plan.shares(np.arange(rows))]
    return shared


def _by_step(batches: Sequence[PolicyBatch], rows: int) -> list[list[PolicyBatch]]:
    """One rank's micro-batches, of which so many rows make an optimiser step."""
    steps: list[list[PolicyBatch]] = []
    held = rows
    for batch in batches:
        if held == rows:
            steps.append([])
            held = 0
        steps[-1].append(batch)
        held += len(batch.advantage)
    return steps


def _joined(batches: Sequence[PolicyBatch]) -> PolicyBatch:
    """All rows in one batch, left-padded to one width."""
    width = max(batch.canvas.ids.shape[1] for batch in batches)

    def joined(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([pad(value, (width - value.shape[1], 0)) for value in values])

    return PolicyBatch(
        Canvas.cat([batch.canvas.left_padded(width) for batch in batches]),
        [
            Noise.cat([noise.left_padded(width) for noise in draw])
            for draw in zip(*(batch.noise for batch in batches), strict=True)
        ],
        joined([batch.advantage for batch in batches]),
        torch.cat([batch.counted for batch in batches]),
        batches[0].version,
        None if batches[0].old is None else [joined(values) for values in _level(batches)],
        None if batches[0].reference is None else joined([_there(batch.reference) for batch in batches]),
        None if batches[0].place is None else torch.cat([_there(batch.place) for batch in batches]),
    )


def _level(batches: Sequence[PolicyBatch]) -> Iterator[list[Tensor]]:
    """The old values of each draw. Trajectories may have different numbers of parts: what is missing adds nothing."""
    olds = [batch.old or [] for batch in batches]
    for k in range(max(map(len, olds))):
        yield [old[k] if k < len(old) else torch.zeros_like(old[0]) for old in olds]


def _there(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _rows(batch: PolicyBatch, rows: Tensor) -> PolicyBatch:
    """Some rows, without the padding that none of them needs."""
    start = int(batch.canvas.attended[rows].any(0).long().argmax())
    return batch.each(lambda value: value[rows, start:] if value.dim() == 2 else value[rows])


def _draw(rollout: Rollout, rows: np.ndarray, plan: Plan, number: int, k: int, draws: int, seed: int) -> Noise:
    """Draw k of pass `number`. Times are stratified over a row's draws, and over the rollout's rows with theirs, and
    drawn anew for every pass; the numbers of a row's canvas come first, then those of its prompt, so that neither
    depends on the width.
    """
    W = rollout.canvas.ids.shape[1]
    C = int(rollout.canvas.corruptible[0].sum())
    lengths = rollout.canvas.attended.sum(-1) - C
    u = torch.ones(len(rows), W)
    tau = torch.zeros(len(rows), W, dtype=torch.float64)
    shift = drawn_shift(seed, rollout.number, number)
    for b, row in enumerate(rows.tolist()):
        prompt = int(lengths[row])
        place = rollout.number * plan.rows + row
        noise = row_noise(seed, number * draws + k, place, row * draws + k, C + prompt, shift)
        u[b, W - C :] = torch.from_numpy(noise.u[:C])
        u[b, W - C - prompt : W - C] = torch.from_numpy(noise.u[C:])
        tau[b, W - C - prompt :] = noise.tau
    return Noise(tau, u)
