"""RL on transformers' Trainer, through its public hooks only: the train dataloader is the rollout.

When its buffer is empty, the loader samples, grades and scores a rollout; then it hands out the micro-batches of μ
passes. Where an engine outside answers, rollouts may be sampled ahead (`rl.ahead`). The trainer's own part is
`compute_loss`. What a method is stands in `rl.policy_loss`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.likelihood import Draws, Likelihood, draw_values, estimate, likelihood
from remask.diffusion.reader import Reader
from remask.diffusion.trajectory import Trajectory
from remask.errors import UserError
from remask.rl.ahead import Begun, ahead_of
from remask.rl.batches import Plan, PolicyBatch, batches_of
from remask.rl.groups import of_all
from remask.rl.held_out import HeldOut
from remask.rl.in_groups import from_group, group_means, to_group
from remask.rl.loading import RolloutLoader, Silence, refuse_older
from remask.rl.policy_loss import PolicyObjective, PolicyTerms, policy_terms, rows_counted
from remask.rl.ranks import tell
from remask.rl.rollout import Rollout, RolloutMaker
from remask.sampling.engine import OutsideEngine
from remask.training.reference import Reference
from remask.training.rows import no_sync
from remask.training.sharding import whole
from remask.training.trainer import DiffusionTrainer, Prepared
from remask.training.window import Window

OF_ROWS = ("elbo_per_token", "kl", "kl_old")
"""What is measured of each row, and logged as a mean over rows; all else is of ratios."""


class PolicyTrainer(DiffusionTrainer):
    """A trainer of a policy with one `PolicyObjective` on rollouts of a `RolloutMaker`. `plan` says how a rollout
    becomes optimiser steps; `whole_backward` takes all noise draws in one backward pass. `on_rollout` is called with
    each rollout and the first step after it was begun.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: PolicyObjective,
        maker: RolloutMaker,
        plan: Plan,
        mask_id: int,
        reference: Reference | None = None,
        held_out: HeldOut | None = None,
        max_lag: int = 0,
        log_every: int = 10,
        whole_backward: bool = False,
        on_rollout: Callable[[Rollout, int], None] = lambda rollout, step: None,
        **keywords: Any,
    ) -> None:
        self.objective, self.maker, self.plan, self.mask_id = objective, maker, plan, mask_id
        self.reference, self.problems, self.whole_backward = reference, held_out, whole_backward
        self.on_rollout = on_rollout
        self.ahead = ahead_of(maker, max_lag)
        self.loader = RolloutLoader(self.begin, max_lag=max_lag, per_rollout=plan.steps * plan.micro_batches)
        self.window, self.silence = Window(log_every), Silence()
        self._micro: list[dict[str, Tensor]] = []
        self.of_rollouts: list[dict[str, float]] = []
        keywords.setdefault("eval_dataset", [] if held_out is None else held_out.prompts)
        super().__init__(model, args, **keywords)
        if isinstance(objective.estimator, Trajectory) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise UserError(
                f"likelihood {objective.likelihood} with sharded weights: processes would take different numbers of "
                "forwards",
                where=args.output_dir,
                mend="train on whole weights (one GPU, or DDP), or take another likelihood",
            )

    # ---- rollouts ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self.loader

    def begin(self, number: int) -> Callable[[], list[PolicyBatch]]:
        """Begin a rollout with the weights as they are. Return what waits for this rank's micro-batches of all passes;
        where rollouts are not sampled ahead they are there already.
        """
        step, engine = self.state.global_step, self.maker.engine
        if self.ahead is None or not isinstance(engine, OutsideEngine):
            with whole(self):
                engine.update(self.model, step)
                rollout = self.maker.make(number)
            batches = self._told(rollout, step)
            return lambda: batches
        with whole(self):
            weights = engine.snapshot(self.model, step)
        begun = Begun(number, step, Reference.now(self), copy(self.reference), self.ahead.begin(number, weights))
        return lambda: self._finished(begun)

    def _finished(self, begun: Begun) -> list[PolicyBatch]:
        """Wait for a rollout and score it as it would have been scored when it was begun."""
        assert self.ahead is not None
        rollout = self.ahead.finished(begun.number, begun.own)
        return self._told(rollout, begun.version, begun.policy, begun.reference)

    def settle(self) -> None:
        """Wait for all rollouts that were begun, between steps."""
        before = len(self.of_rollouts)
        self.loader.settle()
        for statistics in self.of_rollouts[before:]:  # no part of a step
            statistics.update(seconds_waiting=0.0, seconds_scoring=0.0)

    def _told(
        self, rollout: Rollout, step: int, policy: Reference | None = None, reference: Reference | None = None
    ) -> list[PolicyBatch]:
        """Say what there is to say of a rollout that was begun after `step`, and score it."""
        number = rollout.number
        refuse_older(rollout, step)
        self.on_rollout(rollout, step + 1)
        for fault in rollout.faults:
            tell(f"rollout {number}: {fault}")
        if (silent := self.silence.saw(rollout)) is not None:
            tell(f"rollout {number}: {silent}")
        started = time.perf_counter()
        batches = self.scored(rollout, policy, reference)
        self.of_rollouts.append({**rollout.statistics, "seconds_scoring": time.perf_counter() - started})
        return batches

    def scored(
        self, rollout: Rollout, policy: Reference | None = None, reference: Reference | None = None
    ) -> list[PolicyBatch]:
        """Return the rollout's micro-batches with what the old and the reference model say of them. policy: the model
        that wrote the answers, where it is not the live one any more; reference: likewise.
        """
        reference = reference or self.reference
        old = self.reader(self.model) if policy is None else policy.reader(self, self.reader)
        objective, passes = self.objective, self.plan.passes
        plan = batches_of(rollout, self.plan, draws=objective.draws, fresh=objective.fresh_noise, seed=self.maker.seed)
        batches = [batch.to(self.args.device) for batch in plan]
        for batch in batches:
            batch.canvas = in_blocks(batch.canvas, attention_of(self.model))
        for place, batch in enumerate(batches):
            if objective.uses_old and self._needs_old(place):
                batch.old = self._values(old, batch)
            if reference is not None and objective.uses_reference:
                values = self._values(reference.reader(self, self.reader), batch)
                batch.reference = self._combined(values, batch)
        return batches if objective.fresh_noise else batches * passes

    def _needs_old(self, place: int) -> bool:
        """In a rollout's first step the old likelihood is the current one; it is read all the same where the gradient
        is taken draw by draw, which begins with it, or where later passes use the micro-batch again.
        """
        repeated = self.plan.passes > 1 and not self.objective.fresh_noise
        return place >= self.plan.micro_batches or self.loader.most_waiting > 0 or repeated or self._by_draw

    @property
    def _by_draw(self) -> bool:
        several = self.objective.draws > 1 or isinstance(self.objective.estimator, Trajectory)
        return several and not self.whole_backward

    @torch.no_grad()
    def _values(self, reader: Reader, batch: PolicyBatch) -> list[Tensor]:
        """What a model says of each token, draw by draw."""
        return draw_values(reader, batch.canvas, self._draws(batch))

    def _combined(self, values: Sequence[Tensor], batch: PolicyBatch) -> Tensor:
        """The likelihood's share of each token."""
        return self.objective.combine(batch.advantage)(values, self._draws(batch))

    def _draws(self, batch: PolicyBatch) -> Draws:
        return self.objective.estimator.draws(batch.canvas, batch.noise, self.mask_id)

    def _shares(self, batch: PolicyBatch, draws: Draws) -> Tensor:
        return self.objective.shares(batch.canvas, draws)

    def _known(self, batch: PolicyBatch, draws: Draws) -> list[Tensor] | None:
        """What the policy says of each draw as it is, where that has been read."""
        known = batch.old if self._is_on_policy(batch) else batch.now
        return known if len(known or ()) == len(draws) else None

    def _is_on_policy(self, batch: PolicyBatch) -> bool:
        """Whether the policy has not moved since it wrote these answers."""
        return batch.version == self.state.global_step

    # ---- loss -------------------------------------------------------------------------------------------------

    def take(self, epoch_iterator: Iterator, count: int, device: torch.device) -> list[PolicyBatch]:
        return list(islice(epoch_iterator, count))

    def prepare(self, batches: list[PolicyBatch], device: torch.device) -> Prepared:
        """Return the micro-batches as they are, and how many answers, tokens or groups are in them. Where answers are
        compared within their groups, the policy first reads them all.
        """
        if self.objective.uses_groups:
            self._compare_in_groups(batches)
        size = self.maker.completions
        counts = [rows_counted(self.objective, b.counted, self._shares(b, self._draws(b)), size) for b in batches]
        inputs = [{"batch": batch, "input_ids": batch.canvas.ids} for batch in batches]
        return inputs, sum(counts, torch.zeros((), device=device))

    def _compare_in_groups(self, batches: list[PolicyBatch]) -> None:
        """Read the step's micro-batches without gradient, and set what its group says of each row."""
        size = self.maker.completions
        for batch in batches:
            known = batch.old if self._is_on_policy(batch) else None
            batch.now = known or self._values(self.reader(self.model), batch)
        own = [self._to_group(batch) for batch in batches]
        group = [batch.place // size for batch in batches if batch.place is not None]
        counted = [batch.counted for batch in batches]
        several = self.args.world_size > 1
        means = group_means(
            own,
            group,
            counted,
            self.plan.rows // size,
            summed=lambda total: self.accelerator.reduce(total, "sum") if several else total,
        )
        for batch, value, number in zip(batches, own, group, strict=True):
            batch.group = from_group(self.objective, value, means[number])

    def _to_group(self, batch: PolicyBatch) -> Tensor:
        """What each row adds to the mean of its group. A weight is of means over draws, whatever the loss combines."""
        assert batch.now is not None
        objective, draws = self.objective, self._draws(batch)
        combine = objective.combine(batch.advantage) if objective.loss == "square" else objective.estimator.combine
        current = likelihood(combine(batch.now, draws), batch.canvas)
        anchor = current
        if objective.loss == "square" and batch.reference is not None:
            anchor = likelihood(batch.reference, batch.canvas)
        elif batch.old is not None and not self._is_on_policy(batch):
            anchor = likelihood(combine(batch.old, draws), batch.canvas)
        return to_group(objective, current, anchor, self._shares(batch, draws))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return (1/N) Σ of this micro-batch's terms, times the number of ranks, whose gradients are averaged
        afterwards.
        """
        batch: PolicyBatch = inputs["batch"]
        assert num_items_in_batch is not None
        total = torch.as_tensor(num_items_in_batch, device=batch.canvas.ids.device).clamp(min=1e-9)
        read: list[tuple[Likelihood, PolicyTerms]] = []

        def loss_of(current: Likelihood) -> Tensor:
            terms = self._terms(current, batch, shares)
            self._refuse_nonfinite(terms)
            read.append((current, terms))
            return torch.where(batch.counted, terms.row, 0.0).sum() / total * self.args.world_size

        draws, combine = self._draws(batch), self.objective.combine(batch.advantage)
        shares = self._shares(batch, draws)
        if self._by_draw:
            loss = draw_by_draw(
                self.reader(model),
                batch.canvas,
                draws,
                loss_of,
                backward=self.backward,
                combine=combine,
                known=self._known(batch, draws),
                no_sync=lambda: no_sync(self, model),
            )
        else:
            loss = loss_of(estimate(self.reader(model), batch.canvas, draws, combine))
        self._micro.append(self._measured(*read[0], batch, shares > 0))
        return loss

    def _terms(self, current: Likelihood, batch: PolicyBatch, shares: Tensor) -> PolicyTerms:
        old = None
        if batch.old is not None and not self._is_on_policy(batch):
            old = likelihood(self._combined(batch.old, batch), batch.canvas)
        reference = None if batch.reference is None else likelihood(batch.reference, batch.canvas)
        return policy_terms(self.objective, batch.advantage, current, old, reference, shares, batch.group)

    def _refuse_nonfinite(self, terms: PolicyTerms) -> None:
        if not torch.isfinite(terms.row.detach()).all():
            raise UserError(
                f"the loss is not finite at step {self.state.global_step + 1}",
                where=self.args.output_dir,
                mend="start anew with a lower trainer.learning_rate; checkpoints, if any, are whole",
            )

    def _measured(
        self, current: Likelihood, terms: PolicyTerms, batch: PolicyBatch, scored: Tensor
    ) -> dict[str, Tensor]:
        """Sums over this micro-batch, for `log` to divide."""
        per_token = current.sequence.detach() / scored.sum(-1).clamp(min=1)
        described = {
            "rows": torch.tensor(float(len(per_token))),
            "elbo_per_token": per_token.sum().cpu(),
            "tokens": batch.canvas.attended.sum().float().cpu(),
        }
        if self.objective.uses_kl:
            described["kl" if self.objective.uses_reference else "kl_old"] = terms.kl.sum().cpu()
        if self.objective.has_ratio:
            described |= {
                "ratios": torch.tensor(float(len(terms.ratio))),
                "ratio_mean": terms.ratio.sum().cpu(),
                "ratio_max": terms.ratio.max().cpu(),
                "clip_low": terms.clipped_low.sum().float().cpu(),
                "clip_high": terms.clipped_high.sum().float().cpu(),
                "ratio_cut": terms.cut.sum().float().cpu(),
            }
        return described

    # ---- evaluation and logging -------------------------------------------------------------------------------

    def held_out(self) -> dict[str, float]:
        """Answer the fixed held-out problems, if any, and return accuracy and mean score of each task, and the mean
        reward.
        """
        if self.problems is None:
            return {}
        self.settle()  # an engine has one set of weights at a time
        with whole(self):
            self.problems.engine.update(self.model, self.state.global_step)
            return self.problems.measure()

    def describe(self, seconds: float) -> dict[str, float]:
        step = {**of_all(self.of_rollouts), **self._summed()}
        self.of_rollouts.clear()
        parts = ("waiting",) if self.ahead else ("sampling", "grading")
        sampled = sum(step.get(f"seconds_{part}", 0.0) for part in (*parts, "scoring"))
        step["seconds_update"] = seconds - sampled
        return step

    def _summed(self) -> dict[str, float]:
        micro, self._micro = self._micro, []
        sums = {name: torch.stack([m[name] for m in micro]) for name in micro[0]}
        rows, ratios = sums.pop("rows").sum(), sums.pop("ratios", torch.ones(1)).sum()
        shown = {"tokens": sums.pop("tokens").sum().item() * self.args.world_size}
        if "ratio_max" in sums:
            shown["ratio_max"] = sums.pop("ratio_max").max().item()
        for name, values in sums.items():
            shown[name] = (values.sum() / (rows if name in OF_ROWS else ratios)).item()
        return shown
