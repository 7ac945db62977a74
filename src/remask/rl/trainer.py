"""RL on transformers' Trainer, through its public hooks only: the train dataloader is the rollout.

When its buffer is empty, the loader samples, grades and scores a rollout with the live model; then it hands out the
micro-batches of μ passes. The trainer's own part is `compute_loss`. What a method is stands in `rl.policy_loss`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainingArguments

from remask.diffusion.likelihood import Likelihood, estimate, likelihood, scored_tokens
from remask.diffusion.reader import ModelReader, Reader
from remask.errors import UserError
from remask.rl.batches import Plan, PolicyBatch, batches_of
from remask.rl.held_out import HeldOut
from remask.rl.policy_loss import PolicyObjective, PolicyTerms, policy_terms, rows_counted
from remask.rl.ranks import tell
from remask.rl.reference import Reference
from remask.rl.rollout import Rollout, Sampler
from remask.rl.scoring import draw_by_draw, draws_of
from remask.training.rows import backward, no_sync
from remask.training.sharding import whole
from remask.training.window import Window, WindowTrainer


class Silence:
    """Tells where rollout after rollout has groups of equal rewards alone: from those, no policy gradient follows."""

    FIRST = 5

    def __init__(self) -> None:
        self.rollouts = self.seen = 0
        self._next = self.FIRST

    def saw(self, rollout: Rollout) -> str | None:
        """What there is to tell after this one: after five in a row, and whenever there are twice as many."""
        self.seen += 1
        self.rollouts = self.rollouts + 1 if rollout.statistics["zero_spread"] == 1 else 0
        if self.rollouts < self._next:
            self._next = self.FIRST if not self.rollouts else self._next
            return None
        self._next *= 2
        return self.warning()

    def warning(self) -> str:
        """Says that nothing is learned, and what to do about it."""
        return (
            f"no group of the last {self.rollouts} rollouts had rewards that differ: nothing is learned from them; see "
            "completions.jsonl, and give a denser reward (--rewards.functions), easier problems, more answers to each "
            "(--rollout.completions) or a higher temperature (--rollout.decoding.temperature)"
        )


class RolloutLoader:
    """Micro-batches without end. `buffer` holds what is left of the current rollout; `number` is the next rollout's."""

    def __init__(self, fill: Callable[[int], Sequence[PolicyBatch]]) -> None:
        self.fill, self.number = fill, 0
        self.buffer: deque[PolicyBatch] = deque()

    def __iter__(self) -> Iterator[PolicyBatch]:
        while True:
            if not self.buffer:
                self.buffer.extend(self.fill(self.number))
                self.number += 1
            yield self.buffer.popleft()


class PolicyTrainer(WindowTrainer):
    """Trains a policy with one `PolicyObjective` on rollouts of a `Sampler`.

    `plan` says how a rollout becomes optimiser steps; `whole_backward` takes all noise draws in one backward pass.
    `on_rollout` is called with each rollout and the step that will use it first.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: PolicyObjective,
        sampler: Sampler,
        plan: Plan,
        mask_id: int,
        reference: Reference | None = None,
        held_out: HeldOut | None = None,
        log_every: int = 10,
        whole_backward: bool = False,
        on_rollout: Callable[[Rollout, int], None] = lambda rollout, step: None,
        **keywords: Any,
    ) -> None:
        self.objective, self.sampler, self.plan, self.mask_id = objective, sampler, plan, mask_id
        self.reference, self.held_out, self.whole_backward = reference, held_out, whole_backward
        self.on_rollout = on_rollout
        self.loader = RolloutLoader(self.roll_out)
        self.window, self.silence = Window(log_every), Silence()
        self._micro: list[dict[str, Tensor]] = []
        self._of_rollout: dict[str, float] = {}
        self._step_started = time.perf_counter()
        keywords.setdefault("eval_dataset", [] if held_out is None else held_out.prompts)
        super().__init__(model, args, **keywords)

    # ---- rollouts ---------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self.loader

    def roll_out(self, number: int) -> list[PolicyBatch]:
        """Sample and grade with the live model, then score the answers: this rank's micro-batches of all passes."""
        with whole(self):
            rollout = self.sampler.make(self.model, number)
        self.on_rollout(rollout, self.state.global_step + 1)
        for fault in rollout.faults:
            tell(f"rollout {number}: {fault}")
        if (silent := self.silence.saw(rollout)) is not None:
            tell(f"rollout {number}: {silent}")
        started = time.perf_counter()
        batches = self.scored(rollout)
        self._of_rollout = {**rollout.statistics, "seconds_scoring": time.perf_counter() - started}
        return batches

    def scored(self, rollout: Rollout) -> list[PolicyBatch]:
        """The rollout's micro-batches with what the old and the reference model say of them."""
        objective, passes = self.objective, self.plan.passes
        plan = batches_of(
            rollout, self.plan, draws=objective.draws, fresh=objective.fresh_noise, seed=self.sampler.seed
        )
        batches = [batch.to(self.args.device) for batch in plan]
        for batch in batches:
            if objective.uses_old and self._needs_old(batch):
                batch.old = self._token_log_p(self.reader(self.model), batch)
            if self.reference is not None and objective.uses_reference:
                batch.reference = self._token_log_p(self.reference.reader(self, self.reader), batch)
        if objective.fresh_noise or passes == 1:
            return batches
        again = [PolicyBatch(**{**vars(batch), "on_policy": False}) for batch in batches]
        return batches + again * (passes - 1)

    def _needs_old(self, batch: PolicyBatch) -> bool:
        """On policy the old likelihood is the current one; it is read all the same where the gradient is taken draw by
        draw, which begins with it, or where later passes use this batch again.
        """
        repeated = self.plan.passes > 1 and not self.objective.fresh_noise
        return not batch.on_policy or repeated or self._by_draw

    @property
    def _by_draw(self) -> bool:
        return self.objective.draws > 1 and not self.whole_backward

    @torch.no_grad()
    def _token_log_p(self, reader: Reader, batch: PolicyBatch) -> Tensor:
        return estimate(reader, batch.canvas, self._draws(batch)).token

    def _draws(self, batch: PolicyBatch) -> Any:
        return draws_of(self.objective, batch.canvas, batch.noise, self.mask_id)

    def reader(self, model: Any) -> ModelReader:
        """The model under the run's mixed precision."""
        return ModelReader(model, self.compute_loss_context_manager)

    # ---- loss -------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one optimiser step, and N counted over all of them and all ranks.

        None where a run goes on from its very end: the engine, whose epochs never end, would take one step more.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            return [], None
        self._step_started = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        size = self.sampler.completions
        counts = [rows_counted(self.objective, b.counted, scored_tokens(b.canvas), size) for b in batches]
        count = sum(counts, torch.zeros((), device=device))
        if self.args.world_size > 1:
            count = self.accelerator.gather(count.reshape(1)).sum()
        return [{"batch": batch, "input_ids": batch.canvas.ids} for batch in batches], count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """(1/N) Σ of this micro-batch's terms; times the number of ranks, whose gradients are averaged afterwards."""
        batch: PolicyBatch = inputs["batch"]
        assert num_items_in_batch is not None
        total = torch.as_tensor(num_items_in_batch, device=batch.canvas.ids.device).clamp(min=1e-9)
        read: list[tuple[Likelihood, PolicyTerms]] = []

        def loss_of(current: Likelihood) -> Tensor:
            terms = self._terms(current, batch)
            self._refuse_nonfinite(terms)
            read.append((current, terms))
            return torch.where(batch.counted, terms.row, 0.0).sum() / total * self.args.world_size

        if self._by_draw:
            loss = draw_by_draw(
                self.reader(model),
                batch.canvas,
                self._draws(batch),
                loss_of,
                backward=lambda loss: backward(self, loss),
                known=batch.old if batch.on_policy else None,
                no_sync=lambda: no_sync(self, model),
            )
        else:
            loss = loss_of(estimate(self.reader(model), batch.canvas, self._draws(batch)))
        self._micro.append(self._describe(*read[0], batch))
        return loss

    def _terms(self, current: Likelihood, batch: PolicyBatch) -> PolicyTerms:
        old = None if batch.old is None or batch.on_policy else likelihood(batch.old, batch.canvas)
        reference = None if batch.reference is None else likelihood(batch.reference, batch.canvas)
        return policy_terms(self.objective, batch.advantage, current, old, reference, scored_tokens(batch.canvas))

    def _refuse_nonfinite(self, terms: PolicyTerms) -> None:
        if not torch.isfinite(terms.row.detach()).all():
            raise UserError(
                f"the loss is not finite at step {self.state.global_step + 1}",
                where=self.args.output_dir,
                mend="start anew with a lower trainer.learning_rate; checkpoints, if any, are whole",
            )

    def _describe(self, current: Likelihood, terms: PolicyTerms, batch: PolicyBatch) -> dict[str, Tensor]:
        """Sums over this micro-batch, for `log` to divide."""
        per_token = current.sequence.detach() / current.scored.clamp(min=1)
        described = {
            "rows": torch.tensor(float(len(per_token))),
            "elbo_per_token": per_token.sum().cpu(),
            "kl": terms.kl.sum().cpu(),
            "tokens": batch.canvas.attended.sum().float().cpu(),
        }
        if self.objective.level != "none":
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

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer the fixed held-out problems, if any: accuracy and mean score of each task, and the mean reward."""
        if self.held_out is None:
            return {}
        with whole(self):
            found = self.held_out.measure(self.model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def of_step(self, logs: dict[str, float]) -> dict[str, float]:
        step = {**logs, **self._of_rollout, **self._summed()}
        self._of_rollout = {}
        # What happens between steps (evaluation, checkpoints) is not counted.
        step["seconds"] = time.perf_counter() - self._step_started
        sampled = sum(step.get(f"seconds_{part}", 0.0) for part in ("sampling", "grading", "scoring"))
        step["seconds_update"] = step["seconds"] - sampled
        return step

    def _summed(self) -> dict[str, float]:
        micro, self._micro = self._micro, []
        sums = {name: torch.stack([m[name] for m in micro]) for name in micro[0]}
        rows, ratios = sums.pop("rows").sum(), sums.pop("ratios", torch.ones(1)).sum()
        shown = {"tokens": sums.pop("tokens").sum().item() * self.args.world_size}
        if "ratio_max" in sums:
            shown["ratio_max"] = sums.pop("ratio_max").max().item()
        for name, values in sums.items():
            shown[name] = (values.sum() / (rows if name in ("elbo_per_token", "kl") else ratios)).item()
        if not self.objective.uses_reference:
            shown.pop("kl")
        return shown
