"""Which policy objective has the gradient of the sampler, and with how much noise?

A draw is a whole rollout: problems, answers, rewards and the noise of the likelihood, all of them drawn anew for the
next. On the answers of a rollout each objective's gradient is taken as `rl.trainer.PolicyTrainer` takes it at the first
update, where the policy is still the one that wrote them: ratios are 1, and the reference model is the policy itself.
Beside them stands the sampler's own, of A·log P(the way the answer was written), with A the reward less the mean of
the others (docs/theory.md §12). Its mean over rollouts is ∇E[reward] where the weights have no say in the order of
reveal, and tokens are drawn at temperature 1 without truncation.

The unit of compute is one forward pass of one row; one with its backward pass counts as three.

Shapes: R rollouts, D trained parameters, M numbers that are kept of a gradient (D, where that is not too many).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainingArguments

from remask.analysis.gradient_sums import Gradient, sketch
from remask.analysis.noisy_means import Figure, Moments, Products, figure, value_of
from remask.analysis.policy_step import length_of, moved
from remask.rl.batches import Plan, PolicyBatch
from remask.rl.groups import Group, Timing
from remask.rl.policy_loss import PolicyObjective
from remask.rl.rollout import RolloutMaker
from remask.rl.trainer import PolicyTrainer

SAMPLER = PolicyObjective(
    likelihood="trajectory", draws=1, scope="canvas", level="none", kl="none", advantage="leave_one_out"
)
"""−A·log P(trajectory), over all tokens that were written, also those behind an answer's end."""
WITH_BACKWARD = 3
"""What a forward pass with its backward pass counts."""
MOST_KEPT = 2**18
"""The most numbers M that are kept of a gradient; of a longer one a sketch is kept (`analysis.gradient_sums`)."""


@dataclass(frozen=True)
class Sampled:
    """A rollout as it was sampled and graded, before an objective lays it out: the same for all objectives."""

    number: int
    groups: Sequence[Group]
    timings: Sequence[Timing]


class FirstUpdate:
    """The gradient of a policy objective at the first update on a rollout, by the trainer's own code. Objectives that
    compare with the reference model compare with the old policy, which is the same model by then.

    folder: where the trainer would write, had it anything to write.
    """

    max_lag = 0

    def __init__(
        self, model: Any, objective: PolicyObjective, maker: RolloutMaker, *, mask_id: int, batch_size: int, folder: str
    ) -> None:
        objective = replace(objective, kl_anchor="old") if objective.uses_reference else objective
        self.maker = replace(
            maker, layout=replace(maker.layout, scope=objective.scope), advantage=objective.advantage, keep=0
        )
        rows = maker.order.per_rollout * maker.completions
        arguments = TrainingArguments(
            folder,
            max_steps=1,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=[],
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        self.trainer = PolicyTrainer(
            model,
            arguments,
            objective=objective,
            maker=self.maker,
            plan=Plan(rows, 1, 1, min(batch_size, rows)),
            max_lag=self.max_lag,
            mask_id=mask_id,
        )

    def __call__(self, sampled: Sampled) -> Gradient:
        """Return ∂loss/∂θ in float32. The model's `.grad` is empty afterwards."""
        return self.gradient(self.scored(sampled))

    def scored(self, sampled: Sampled) -> list[PolicyBatch]:
        """Return the rollout's micro-batches."""
        return self.trainer.scored(self.maker.laid_out(sampled.number, sampled.groups, sampled.timings))

    def gradient(self, batches: list[PolicyBatch]) -> Gradient:
        """Return the gradient of one optimiser step on these micro-batches."""
        model, trainer = self.trainer.model, self.trainer
        model.zero_grad(set_to_none=True)
        inputs, count = trainer.prepare(batches, model.device)
        for each in inputs:
            trainer.backward(trainer.compute_loss(model, each, num_items_in_batch=count))
        found = {
            name: torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.detach().float()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        model.zero_grad(set_to_none=True)
        return found


class LaterUpdate(FirstUpdate):
    """The gradient at an update on a rollout after the policy has made a move. Ratios are to the policy that wrote the
    answers, which is the reference model too.
    """

    max_lag = 1
    """The old likelihoods are read for every row, as the trainer reads those of rollouts that are made ahead."""

    def __init__(self, *args: Any, move: Gradient, **named: Any) -> None:
        super().__init__(*args, **named)
        self.move = move

    def __call__(self, sampled: Sampled) -> Gradient:
        """Return ∂loss/∂θ at the weights after the move. The weights are as before afterwards."""
        self.trainer.state.global_step = 0
        batches = self.scored(sampled)
        self.trainer.state.global_step = 1
        with moved(self.trainer.model, self.move):
            return self.gradient(batches)


@dataclass
class Gathered:
    """The record of one objective's gradients: M numbers of each, the sum of all, and what they took."""

    kept: list[Float[Tensor, "M"]] = field(default_factory=list)
    total: Gradient = field(default_factory=dict)
    forwards: int = 0
    seconds: float = 0.0

    def add(self, gradient: Gradient, forwards: int, seconds: float) -> None:
        """Add a rollout's gradient, and what it took."""
        self.kept.append(kept_of(gradient))
        for name, g in gradient.items():
            self.total[name] = self.total[name] + g if name in self.total else g.clone()
        self.forwards += forwards
        self.seconds += seconds

    @property
    def mean(self) -> Gradient:
        """Return the mean of the gradients as they are."""
        return {name: total / len(self.kept) for name, total in self.total.items()}

    @property
    def matrix(self) -> Float[Tensor, "R M"]:
        """Return what is kept, a row for each rollout."""
        return torch.stack(self.kept).double()


@dataclass(frozen=True)
class PolicyNoise:
    """The bias and noise of one objective's gradient.

    forwards: forward passes of a row that an answer's gradient takes, beside those that wrote it. seconds: of a
    rollout's gradient. cosine: of its mean with the mean of the sampler's own. relative: tr Σ/‖μ‖² of one rollout's.
    compute: how many forwards a gradient takes that is as exact as one of the sampler's own, of its forwards; seconds
    likewise. one_rollout: how much of one rollout's gradient points along the mean of the sampler's own: its cosine and
    its noise in one number.
    """

    name: str
    forwards: float
    seconds: float
    norm: float | None
    cosine: Figure
    relative: Figure
    compute: Figure
    compute_seconds: float | None
    one_rollout: Figure
    along: float


@dataclass
class Meter:
    """A meter counts the forward passes of a row that are made of a model."""

    rows: int = 0

    @contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """Count while the block runs: a row once, and three times where a gradient is to be taken."""

        def count(module: Any, positional: Any, named: dict[str, Any]) -> None:
            ids = named.get("input_ids", named.get("clean", positional[0] if positional else None))
            assert ids is not None
            self.rows += len(ids) * (WITH_BACKWARD if torch.is_grad_enabled() else 1)

        handle = model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def kept_of(gradient: Gradient) -> Float[Tensor, "M"]:
    """Return a gradient as M numbers, all of its own where it has no more than `MOST_KEPT`."""
    if sum(g.numel() for g in gradient.values()) > MOST_KEPT:
        return sketch(gradient, MOST_KEPT)
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)]).cpu()


def one_by_one(
    model: Any, updates: Mapping[str, FirstUpdate], rollouts: Sequence[Sampled]
) -> Iterator[tuple[str, Gathered, int]]:
    """Yield (objective, what is gathered of it so far, forward passes of a row that were just made) after each
    gradient: first the first rollout's of every objective, then the others' of one objective after another.
    """
    gathered = {name: Gathered() for name in updates}
    order = [(name, rollouts[0]) for name in updates]
    order += [(name, rollout) for name in updates for rollout in rollouts[1:]]
    for name, rollout in order:
        meter, started = Meter(), time.perf_counter()
        with meter.of(model):
            gradient = updates[name](rollout)
        gathered[name].add(gradient, meter.rows, time.perf_counter() - started)
        yield name, gathered[name], meter.rows


def held_against(name: str, own: Gathered, sampler: Gathered, answers: int, *, paired: bool = True) -> PolicyNoise:
    """Return what was measured of an objective over its rollouts of so many answers each. paired: whether both were of
    the same answers.
    """
    g, h = own.matrix, sampler.matrix
    products = Products((g @ g.T).numpy(), (h @ h.T).numpy(), (g @ h.T).numpy(), paired)
    forwards, seconds = own.forwards / sampler.forwards, own.seconds / sampler.seconds
    many = figure(products, Moments.compute)
    return PolicyNoise(
        name,
        own.forwards / len(g) / answers,
        own.seconds / len(g),
        figure(products, Moments.norm).value,
        figure(products, Moments.cosine),
        figure(products, Moments.relative),
        scaled(many, forwards),
        None if many.value is None else many.value * seconds,
        figure(products, Moments.one_draw),
        value_of(products, Moments.product) / length_of(own.mean),
    )


def scaled(given: Figure, factor: float) -> Figure:
    """Return a figure times a number above 0."""
    value, low, high = (None if part is None else part * factor for part in (given.value, given.low, given.high))
    return Figure(value, low, high)
