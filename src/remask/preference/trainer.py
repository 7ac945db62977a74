"""Preference optimisation on transformers' Trainer, through its public hooks only.

`get_batch_samples` counts the pairs of one optimiser step over accumulation and ranks; `compute_loss` reads reference
and policy on a micro-batch of pairs; `evaluate` does the same on held-out pairs with fixed noise. What a method is
stands in `preference.loss`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from remask.data.collate import RowDataset, Visit, VisitSampler
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import Draws, Likelihood, estimate
from remask.diffusion.noise import Noise
from remask.preference.data import Pair, PairBatch, PairCollator, batch_of
from remask.preference.loss import PreferenceObjective, PreferenceTerms, measured, preference_terms
from remask.training.reference import Reference
from remask.training.rows import EVALUATION_SEED, even_multiple, no_sync, refuse_nonfinite, row_loader
from remask.training.sharding import shares
from remask.training.trainer import DiffusionTrainer, Prepared
from remask.training.window import Window


class PreferenceTrainer(DiffusionTrainer):
    """A trainer of a policy with one `PreferenceObjective` on pairs.

    The reference is the model as it is when training begins: the base with its adapters off, or a copy of the weights.
    `whole_backward` takes all noise draws in one backward pass.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: PreferenceObjective,
        pairs: Sequence[Pair],
        collator: PairCollator,
        mask_id: int,
        eval_pairs: Sequence[Pair] = (),
        eval_draws: int = 8,
        log_every: int = 10,
        whole_backward: bool = False,
        **keywords: Any,
    ) -> None:
        self.objective, self.pairs, self.eval_pairs = objective, pairs, eval_pairs
        self.collator, self.mask_id, self.whole_backward = collator, mask_id, whole_backward
        # Fixed, and shared whatever the objective does: the model is measured, not the estimate it is trained by.
        draws = 1 if objective.likelihood == "mean_field" else eval_draws
        self.eval_collator = replace(collator, seed=EVALUATION_SEED, draws=draws, shared_noise=True)
        self.sampler = VisitSampler(len(pairs), seed=collator.seed, multiple=even_multiple(args))
        self.window = Window(log_every)
        self._micro: list[dict[str, Tensor]] = []
        self._total = 1.0
        self._seconds_reference = 0.0
        keywords.setdefault("eval_dataset", eval_pairs)
        super().__init__(model, args, train_dataset=RowDataset(pairs), data_collator=collator, **keywords)
        self.reference = Reference(self.model)  # after the engine has put the model on its device

    # ---- batches ----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        return row_loader(self, RowDataset(self.pairs), self.sampler, self.collator)

    def prepare(self, batches: list[dict[str, Tensor]], device: torch.device) -> Prepared:
        """Return every micro-batch on its device, and the number of pairs in all of them."""
        pairs = [self._batch(tensors, device) for tensors in batches]
        count = sum((batch.counted.sum() for batch in pairs), torch.zeros((), device=device))
        return [{"batch": batch, "input_ids": batch.canvas.ids} for batch in pairs], count

    def _batch(self, tensors: dict[str, Tensor], device: torch.device) -> PairBatch:
        batch = batch_of(tensors, device)
        return replace(batch, canvas=in_blocks(batch.canvas, attention_of(self.model)))

    def draws(self, batch: PairBatch, noise: Sequence[Noise]) -> Draws:
        """Return what a model is shown, draw by draw."""
        return ESTIMATORS[self.objective.likelihood].draws(batch.canvas, noise, self.mask_id)

    @torch.no_grad()
    def read_reference(self, batch: PairBatch) -> Likelihood:
        """Return the reference's likelihood of each answer of the batch."""
        reader = self.reference.reader(self, self.reader)
        return estimate(reader, batch.canvas, self.draws(batch, batch.reference_noise))

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the sum of this micro-batch's losses over the pairs of the step, times the number of ranks, whose
        gradients are averaged afterwards.
        """
        batch: PairBatch = inputs["batch"]
        started = time.perf_counter()
        reference = self.read_reference(batch)
        self._seconds_reference += time.perf_counter() - started
        assert num_items_in_batch is not None
        total = torch.as_tensor(num_items_in_batch, device=batch.canvas.ids.device).clamp(min=1)
        self._total = float(total)
        read: list[tuple[Likelihood, PreferenceTerms]] = []

        def loss_of(current: Likelihood) -> Tensor:
            terms = preference_terms(self.objective, current, reference)
            refuse_nonfinite(self, terms.pair, [self.pairs[n] for n in batch.index.tolist()])
            read.append((current, terms))
            return torch.where(batch.counted, terms.pair, 0.0).sum() / total * self.args.world_size

        views = self.draws(batch, batch.noise)
        if len(views) > 1 and not self.whole_backward:
            loss = draw_by_draw(
                self.reader(model),
                batch.canvas,
                views,
                loss_of,
                backward=self.backward,
                no_sync=lambda: no_sync(self, model),
            )
        else:
            loss = loss_of(estimate(self.reader(model), batch.canvas, views))
        current, terms = read[0]
        of_pairs = {name: torch.where(batch.counted, v, 0.0).sum() for name, v in measured(terms, current).items()}
        self._micro.append({**of_pairs, "tokens": batch.canvas.attended.sum()})
        return loss

    # ---- evaluation and logging -------------------------------------------------------------------------------

    def held_out(self) -> dict[str, float]:
        """Return the held-out pairs' loss, accuracy, margin, rewards and ELBOs, on the same noise every time."""
        size, batch_size = len(self.eval_pairs), self.args.per_device_eval_batch_size
        members = [list(range(start, min(start + batch_size, size))) for start in range(0, size, batch_size)]
        if self.args.world_size > 1:
            # As many pairs as the others: how many forwards a batch takes depends on its rows (`token_log_p`), and with
            # sharded weights processes must take the same number. What fills the last batch up is not counted.
            members[-1] += members[-1][-1:] * (batch_size - len(members[-1]))
        own = []
        with self.measuring():
            for each, counts in shares(members, self.args.process_index, self.args.world_size):
                measured_pairs = self._measured(each)[: len(set(each))]
                own += measured_pairs if counts else []
        found: list[dict[str, float]] = gather_object(own)
        return {name: math.fsum(pair[name] for pair in found) / size for name in found[0]}

    @torch.no_grad()
    def _measured(self, members: Sequence[int]) -> list[dict[str, float]]:
        """What is measured of each of these held-out pairs."""
        tensors = self.eval_collator([(self.eval_pairs[i], Visit(i, 0, i)) for i in members])
        batch = self._batch(tensors, self.args.device)
        current = estimate(self.reader(self.model), batch.canvas, self.draws(batch, batch.noise))
        terms = preference_terms(self.objective, current, self.read_reference(batch))
        of_pairs = {name: values.tolist() for name, values in measured(terms, current).items()}
        return [dict(zip(of_pairs, values, strict=True)) for values in zip(*of_pairs.values(), strict=True)]

    def describe(self, seconds: float) -> dict[str, float]:
        micro, self._micro = self._micro, []
        # Of this rank, times the ranks: the mean over the ranks is then the sum over all pairs by their number.
        step = {name: torch.stack([m[name] for m in micro]).sum().item() * self.args.world_size for name in micro[0]}
        step = {name: value if name == "tokens" else value / self._total for name, value in step.items()}
        step["seconds_reference"] = self._seconds_reference
        self._seconds_reference = 0.0
        return step
