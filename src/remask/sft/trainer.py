"""SFT on transformers' Trainer, through its public hooks only.

The trainer's own part is small: `get_batch_samples` corrupts the micro-batches of one optimiser step and counts their
denominator N over accumulation steps and ranks; `compute_loss` scores them; `evaluate` does the same on held-out rows
with fixed noise. What a method is stands in `remask.diffusion.objective`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from remask.data.canvas import Row
from remask.data.collate import Collator, RowDataset, Visit, VisitSampler, by_length
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise
from remask.diffusion.objective import (
    Objective,
    SftTerms,
    complement_of,
    corrupt,
    denominator,
    read_importance,
    scored_positions,
    sft_terms,
)
from remask.errors import UserError
from remask.models.facts import required_mask
from remask.sft.signals import SignalCache
from remask.training.rows import EVALUATION_SEED, even_multiple, no_sync, refuse_nonfinite, row_loader
from remask.training.sharding import shares
from remask.training.trainer import DiffusionTrainer, Prepared
from remask.training.window import Window

LEAST_TOKENS = {True: 512, False: 4096}
"""The numbers of tokens (on a CPU, and elsewhere) below which a part of a batch is not worth a separate
forward pass."""
WEIGHING = ("scored", "weight", "weight_squared")
"""The names of sums over a step's scored tokens; (Σw)²/Σw² of them is the effective sample size."""


@dataclass(frozen=True)
class Part:
    """A part is one micro-batch, corrupted, with the reference model's losses where the objective compares
    with them.
    """

    canvas: Canvas
    corrupted: Corrupted
    index: Tensor
    ce_reference: Tensor | None
    statistics: dict[str, float]


class SftTrainer(DiffusionTrainer):
    """A trainer of a diffusion language model with one `Objective`.

    rows and eval_rows are tokenised; `collator` lays them on canvases and seeds their noise; `cache` holds the frozen
    probe's signals (None: the probe reads the model in training, at every step); `reference` is the model that Rho-1
    compares with.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: Objective,
        rows: Sequence[Row],
        collator: Collator,
        mask_id: int | None,
        eval_rows: Sequence[Row] = (),
        eval_draws: int = 4,
        micro_batch_tokens: int = 0,
        log_every: int = 10,
        cache: SignalCache | None = None,
        reference: torch.nn.Module | None = None,
        **keywords: Any,
    ) -> None:
        self.objective, self.rows, self.eval_rows = objective, rows, eval_rows
        self.collator, self.mask_token_id, self.eval_draws = collator, mask_id, eval_draws
        self.micro_batch_tokens = micro_batch_tokens
        self.cache, self.reference = cache, reference
        self.sampler = VisitSampler(len(rows), seed=collator.seed, multiple=even_multiple(args))
        self.window = Window(log_every)
        self._statistics: list[dict[str, float]] = []
        super().__init__(model, args, train_dataset=RowDataset(rows), data_collator=collator, **keywords)

    @property
    def mask_id(self) -> int:
        """Return the token that masks. Raises UserError for a model that has none."""
        return required_mask(self.mask_token_id)

    # ---- batches ----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        return row_loader(self, RowDataset(self.rows), self.sampler, self.collator)

    def prepare(self, batches: list[dict[str, Tensor]], device: torch.device) -> Prepared:
        """Return every micro-batch in parts, corrupted, and this process's part of N."""
        prepared = [[each for part in self.parts(batch) for each in self.corrupted(part, device)] for batch in batches]
        counts = [denominator(self.objective, p.canvas, p.corrupted) for parts in prepared for p in parts]
        inputs = [{"parts": parts, "input_ids": batch["ids"]} for parts, batch in zip(prepared, batches, strict=True)]
        return inputs, sum(counts, torch.zeros((), device=device))

    def parts(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Cut the batch into parts of rows of like length. It stays whole where all ranks must take the same forwards
        (sharded weights), and where a row's rates depend on the others of its batch.
        """
        objective = self.objective
        together = objective.uses_importance and objective.reference == "batch"
        if not self.micro_batch_tokens or together or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return [batch]
        return by_length(batch, most=self.micro_batch_tokens, least=LEAST_TOKENS[self.args.device.type == "cpu"])

    def corrupted(
        self,
        batch: dict[str, Tensor],
        device: torch.device,
        *,
        objective: Objective | None = None,
        use_cache: bool = True,
    ) -> list[Part]:
        """Corrupt a part of a micro-batch: read the probe (or its cache), draw the mask, and read the reference model's
        losses; under `complement` a second time with the other tokens masked.
        """
        objective = objective or self.objective
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        canvas, noise = in_blocks(Canvas.of(batch), attention_of(self.model)), Noise.of(batch)
        started = time.perf_counter()
        reader = self.reader(self.model_wrapped).read_only()
        signal = None
        if objective.uses_importance:
            if self.cache is not None and use_cache:
                signal = self.cache.lay(batch["index"], canvas.corruptible)
            else:
                signal = probe_signal(reader, canvas, self.mask_id, objective.signal)
        corrupted = corrupt(objective, canvas, noise, self.mask_id, signal=signal, reader=reader)
        read = [corrupted, complement_of(canvas, corrupted, self.mask_id)] if objective.complement else [corrupted]
        references = [self._reference_losses(canvas, c) if objective.uses_reference_model else None for c in read]
        probe_seconds = (time.perf_counter() - started) / len(read)
        return [
            Part(
                canvas,
                one,
                batch["index"],
                reference,
                self._measured(objective, canvas, one, noise, signal, probe_seconds),
            )
            for one, reference in zip(read, references, strict=True)
        ]

    def _reference_losses(self, canvas: Canvas, corrupted: Corrupted) -> Tensor:
        where = scored_positions(canvas, corrupted)
        if self.reference is not None:
            return self.reader(self.reference).read_only().losses(corrupted.ids, canvas, where)
        model: Any = self.model
        if not hasattr(model, "disable_adapter"):
            raise UserError("the objective compares with a reference model", mend="pass reference to SftTrainer")
        with model.disable_adapter():
            return self.reader(model).read_only().losses(corrupted.ids, canvas, where)

    def _measured(
        self,
        objective: Objective,
        canvas: Canvas,
        corrupted: Corrupted,
        noise: Noise,
        signal: Tensor | None,
        probe_seconds: float,
    ) -> dict[str, float]:
        """What is logged of a corruption: masked fraction, mean rate, β, tokens."""
        response = canvas.corruptible
        size = response.sum().clamp(min=1)
        described = {
            "response": float(response.sum()),
            "computed": float(response.numel()),
            "masked_fraction": (corrupted.mask.sum() / size).item(),
            "rate_mean": (corrupted.rate.sum() / size).item(),
            "tokens": float(canvas.attended.sum()),
            "seconds_probe": probe_seconds,
        }
        if signal is not None and response.any():
            beta = read_importance(objective, canvas, noise, signal).beta[response]
            described |= {
                "beta_mean": beta.mean().item(),
                "beta_std": beta.std(unbiased=False).item(),
                "beta_max": beta.max().item(),
            }
        return described

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return (1/N) Σ w·m·ce over this micro-batch, times the number of ranks, whose gradients are averaged
        afterwards.

        The gradient of all parts but the last is taken by this method, that of the last by the engine.
        """
        assert num_items_in_batch is not None
        parts: list[Part] = inputs["parts"]
        before = torch.zeros((), device=self.args.device)
        for part in parts:
            terms, members = self.terms(model, part), [self.rows[n] for n in part.index.tolist()]
            refuse_nonfinite(self, terms.rows, members)
            own = torch.tensor([len(row.response) for row in members], device=terms.rows.device)
            part.statistics["filled"] = float((part.canvas.corruptible.sum(-1) - own).clamp(min=0).sum())
            self._statistics.append(part.statistics)
            total = torch.as_tensor(num_items_in_batch, device=terms.rows.device).clamp(min=1)
            loss = terms.loss / total * self.args.world_size
            if part is not parts[-1]:
                with no_sync(self, model):
                    self.backward(loss)
                before += loss.detach()
        return loss + before

    def terms(self, model: Any, prepared: Part, objective: Objective | None = None) -> SftTerms:
        """Return the micro-batch's part of the numerator."""
        canvas, corrupted = prepared.canvas, prepared.corrupted
        found = sft_terms(objective or self.objective, self.reader(model), canvas, corrupted, prepared.ce_reference)
        weights = found.weights.double()
        sums = (len(weights), weights.sum().item(), weights.square().sum().item())
        prepared.statistics.update(zip(WEIGHING, sums, strict=True))
        return found

    # ---- evaluation -------------------------------------------------------------------------------------------

    def held_out(self) -> dict[str, float]:
        """Return the held-out loss, on the same noise every time and over the same kind of N as in training.

        `loss` is the objective's loss. `nll` is −ELBO per response token under plain SFT's noise: an upper bound of the
        negative log-likelihood, in nats, and comparable between methods.
        """
        own, plain = self._held_out_loss(self.objective), Objective()
        return {"loss": own, "nll": own if self.objective == plain else self._held_out_loss(plain)}

    def _held_out_loss(self, objective: Objective) -> float:
        size, batch_size = len(self.eval_rows), self.args.per_device_eval_batch_size
        collator = replace(self.collator, seed=EVALUATION_SEED)
        dataset = RowDataset(self.eval_rows)
        device = self.args.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        batches = [range(s, min(s + batch_size, size)) for s in range(0, size, batch_size)]
        jobs = [(draw, members) for draw in range(self.eval_draws) for members in batches]
        with self.measuring(), torch.no_grad():
            for (draw, members), counts in shares(jobs, self.args.process_index, self.args.world_size):
                visits = [Visit(i, draw, draw * size + i) for i in members]
                for tensors in self.parts(collator([dataset[v] for v in visits])):
                    for part in self.corrupted(tensors, device, objective=objective, use_cache=False):
                        sums[0] += counts * self.terms(self.model, part, objective).rows.double().sum()
                        sums[1] += counts * denominator(objective, part.canvas, part.corrupted).double()
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums[None]).sum(0)
        return (sums[0] / sums[1].clamp(min=1)).item()

    # ---- logging ----------------------------------------------------------------------------------------------

    def describe(self, seconds: float) -> dict[str, float]:
        step = {
            name: sum(s[name] for s in self._statistics) for name in ("tokens", "computed", "filled", "seconds_probe")
        }
        step["fill"] = step.pop("filled") / step["computed"]
        step["padding"] = 1 - step["tokens"] / step.pop("computed")
        for name in ("masked_fraction", "rate_mean", "beta_mean", "beta_std", "beta_max"):
            parts = [(s["response"], s[name]) for s in self._statistics if name in s]
            if parts:
                step[name] = sum(size * value for size, value in parts) / max(1.0, sum(size for size, _ in parts))
        scored, weight, squared = (sum(s[name] for s in self._statistics) for name in WEIGHING)
        if squared:
            step["effective_tokens"] = weight**2 / squared / scored
        self._statistics.clear()
        step["tokens"] *= self.args.world_size  # of this process, times the processes
        return step

    def averaged(self) -> dict[str, float]:
        return self.window.averaged()  # the engine's numbers are of all processes already
