"""From a rollout to the micro-batches of its updates: which rows, in which order, on which noise.

Shapes: N rows of the rollout, B rows of a micro-batch, W width, C canvas, K draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise, row_noise
from remask.errors import UserError
from remask.rl.rollout import Rollout


@dataclass(frozen=True)
class Plan:
    """How a rollout of N rows becomes updates: `passes` (μ) over all rows, each in `minibatches` optimiser steps, whose
    rows the ranks share evenly and take `batch_size` at a time.
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
        """Of one optimiser step on one rank: its gradient accumulation."""
        return -(-(self.rows // self.minibatches // self.world) // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of a rollout."""
        return self.passes * self.minibatches

    def members(self, order: np.ndarray) -> list[np.ndarray]:
        """This rank's micro-batches of one pass over the rows in `order`."""
        batches = []
        for step in np.split(order, self.minibatches):
            own = np.split(step, self.world)[self.rank]
            batches += [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        return batches


@dataclass
class PolicyBatch:
    """One micro-batch: rows of a rollout, their noise (one for each draw), and how likely the old and the reference
    model found them on it, token by token [B, W], where that is needed.

    on_policy: the policy has not moved since the rollout.
    """

    canvas: Canvas
    noise: list[Noise]
    advantage: Float[Tensor, "B"]
    counted: Bool[Tensor, "B"]
    on_policy: bool
    old: Float[Tensor, "B W"] | None = None
    reference: Float[Tensor, "B W"] | None = None

    def to(self, device: torch.device) -> PolicyBatch:
        c = self.canvas
        return PolicyBatch(
            Canvas(c.ids.to(device), c.attended.to(device), c.corruptible.to(device), c.supervised.to(device)),
            [noise.to(device) for noise in self.noise],
            self.advantage.to(device),
            self.counted.to(device),
            self.on_policy,
            None if self.old is None else self.old.to(device),
            None if self.reference is None else self.reference.to(device),
        )


def batches_of(rollout: Rollout, plan: Plan, *, draws: int, fresh: bool, seed: int) -> Iterator[PolicyBatch]:
    """This rank's micro-batches of one pass, or with `fresh` noise of all passes, in the order they are used.

    Rows are shuffled for every pass where it takes several optimiser steps. Without fresh noise later passes repeat the
    first.
    """
    for number in range(plan.passes if fresh else 1):
        order = np.arange(plan.rows)
        if plan.minibatches > 1:
            order = np.random.default_rng([seed, rollout.number, number, 0x0E]).permutation(plan.rows)
        for place, members in enumerate(plan.members(order)):
            yield _batch(
                rollout,
                torch.from_numpy(members),
                [_draw(rollout, members, plan, number, k, draws, seed) for k in range(draws)],
                on_policy=number == 0 and place < plan.micro_batches,
            )


def _batch(rollout: Rollout, rows: Tensor, noise: list[Noise], *, on_policy: bool) -> PolicyBatch:
    """The rows, without the padding that none of them needs."""
    start = int(rollout.attended[rows].any(0).long().argmax())
    canvas = Canvas(
        rollout.ids[rows, start:],
        rollout.attended[rows, start:],
        rollout.response[rows, start:],
        rollout.scored[rows, start:],
    )
    cut = [Noise(n.t, n.u[:, start:]) for n in noise]
    return PolicyBatch(canvas, cut, rollout.advantage[rows], rollout.counted[rows], on_policy)


def _draw(rollout: Rollout, rows: np.ndarray, plan: Plan, number: int, k: int, draws: int, seed: int) -> Noise:
    """Draw k of pass `number`. Times are stratified over a row's draws, and over the rollout's rows with theirs; the
    numbers of a row's canvas come first, then those of its prompt, so that neither depends on the width.
    """
    W = rollout.ids.shape[1]
    C = int(rollout.response[0].sum())
    lengths = rollout.attended.sum(-1) - C
    u = torch.ones(len(rows), W)
    t = torch.zeros(len(rows))
    for b, row in enumerate(rows.tolist()):
        prompt = int(lengths[row])
        visit = ((rollout.number * plan.passes + number) * plan.rows + row) * draws + k
        noise = row_noise(seed, number * draws + k, rollout.number * plan.rows + row, visit, C + prompt)
        u[b, W - C :] = torch.from_numpy(noise.u[:C])
        u[b, W - C - prompt : W - C] = torch.from_numpy(noise.u[C:])
        t[b] = noise.t
    return Noise(t, u)
