"""Fine-tuning of models whose noise replaces tokens by others (DiffusionGemma): two losses, each with an N of its own.

Noise, order, batches and resuming are those of every fine-tuning (`sft/trainer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import TrainingArguments

from remask.data.canvas import Row
from remask.data.collate import Collator, RowDataset, Visit
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise
from remask.diffusion.objective import Objective, SftTerms
from remask.diffusion.uniform import UniformObjective, chosen, next_tokens, replaced, shares
from remask.errors import UserError
from remask.models.facts import Facts
from remask.sft.trainer import Part, SftTrainer
from remask.training.rows import EVALUATION_SEED
from remask.training.sharding import shares as shared_out
from remask.training.trainer import Prepared


@dataclass(frozen=True)
class UniformPart(Part):
    """A part whose canvas has as supervised tokens those of the canvases that are learned. conditioned [B]: the rows
    that are read twice. next_tokens [B, L]: the clean tokens that the encoder learns.
    """

    conditioned: Bool[Tensor, "B"]
    next_tokens: Bool[Tensor, "B L"]


class UniformTrainer(SftTrainer):
    """A trainer of a model that replaces tokens by others, with a `UniformObjective`."""

    objective: UniformObjective

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        objective: Objective,
        rows: Sequence[Row],
        collator: Collator,
        **keywords: Any,
    ) -> None:
        self._encoder_share = torch.zeros(())
        super().__init__(model, args, objective=objective, rows=rows, collator=collator, **keywords)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError(
                "the encoder and the decoder share their weights, which FSDP and DeepSpeed would shard apart",
                mend="train on one GPU, or on several by plain data parallelism; adapters need less memory (lora.rank)",
            )

    def prepare(self, batches: list[dict[str, Tensor]], device: torch.device) -> Prepared:
        """Return every micro-batch in parts, replaced, and this process's part of the decoder's N; the encoder's is
        counted over all processes here.
        """
        inputs, count = super().prepare(batches, device)
        read = sum(
            (part.next_tokens.sum() for each in inputs for part in each["parts"]), torch.zeros((), device=device)
        )
        counts = torch.stack([count.float(), read.float()])
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        self._encoder_share = counts[0].clamp(min=1) / counts[1].clamp(min=1)
        return inputs, count

    def corrupted(
        self,
        batch: dict[str, Tensor],
        device: torch.device,
        *,
        objective: Objective | None = None,
        use_cache: bool = True,
    ) -> list[Part]:
        """Replace tokens of a part of a micro-batch, and choose the canvases that are learned."""
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        canvas, noise = in_blocks(Canvas.of(batch), attention_of(self.model)), Noise.of(batch)
        found = chosen(self.objective, canvas, noise)
        corrupted = replaced(self.objective, canvas, noise, self.model.config.vocab_size)
        learned = replace(canvas, supervised=canvas.supervised & found.canvas)
        size = learned.supervised.sum().clamp(min=1)
        statistics = {
            "response": float(learned.supervised.sum()),
            "computed": float(canvas.corruptible.numel()),
            "replaced_fraction": ((corrupted.mask & learned.supervised).sum() / size).item(),
            "rate_mean": ((corrupted.rate * learned.supervised).sum() / size).item(),
            "tokens": float(canvas.attended.sum()),
            "seconds_probe": 0.0,
        }
        read = next_tokens(canvas, self.collator.eos_id)
        return [UniformPart(learned, corrupted, batch["index"], None, statistics, found.conditioned, read)]

    def terms(self, model: Any, prepared: Part, objective: Objective | None = None) -> SftTerms:
        """Return the micro-batch's part of the numerator, over the decoder's N: the encoder's losses are weighed with
        λ and the ratio of the two N.
        """
        assert isinstance(prepared, UniformPart)
        canvas, where, read = prepared.canvas, prepared.canvas.supervised, prepared.next_tokens
        weights = torch.ones(int(where.sum()), device=where.device)
        said = self.reader(model).call(
            prepared.corrupted.ids,
            canvas,
            where,
            targets=canvas.ids[where],
            weights=weights,
            conditioned=prepared.conditioned,
            scored_clean=read,
        )
        share = self.objective.encoder * self._encoder_share.to(where.device)
        rows = torch.zeros(len(where), device=where.device)
        for mask, losses, weight in ((where, said.token_loss, 1.0), (read, said.clean_loss, share)):
            rows = rows.index_add(0, mask.nonzero()[:, 0], losses.detach().float() * weight)
        sums = torch.stack([said.token_loss.detach().sum(), said.clean_loss.detach().sum()])
        counts = torch.stack([where.sum(), read.sum()])
        prepared.statistics.update(zip(("diffusion", "encoder"), sums.tolist(), strict=True))
        prepared.statistics.update(zip(("scored", "read"), counts.tolist(), strict=True))
        prepared.statistics.update(weight=float(len(weights)), weight_squared=float(len(weights)))
        return SftTerms(said.loss + share * said.clean_loss.sum(), rows, weights)

    def held_out(self) -> dict[str, float]:
        """Return the held-out loss and its two parts, on the same noise every time. There is no `nll`: the loss is no
        bound on the likelihood.
        """
        size, batch_size = len(self.eval_rows), self.args.per_device_eval_batch_size
        collator, dataset = replace(self.collator, seed=EVALUATION_SEED), RowDataset(self.eval_rows)
        sums = torch.zeros(2, 2, dtype=torch.float64, device=self.args.device)
        batches = [range(s, min(s + batch_size, size)) for s in range(0, size, batch_size)]
        jobs = [(draw, members) for draw in range(self.eval_draws) for members in batches]
        with self.measuring(), torch.no_grad():
            for (draw, members), counts in shared_out(jobs, self.args.process_index, self.args.world_size):
                visits = [Visit(i, draw, draw * size + i) for i in members]
                for tensors in self.parts(collator([dataset[v] for v in visits])):
                    for part in self.corrupted(tensors, self.args.device):
                        self.terms(self.model, part)
                        found = part.statistics
                        measured = [[found["diffusion"], found["encoder"]], [found["scored"], found["read"]]]
                        sums += counts * torch.tensor(measured, dtype=torch.float64, device=sums.device)
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums[None]).sum(0)
        return shares(sums[0].float(), sums[1].float(), self.objective.encoder)

    def describe(self, seconds: float) -> dict[str, float]:
        """Return the numbers of the step; the two losses apart are this process's, as its other means are."""
        totals = {
            name: sum(s[name] for s in self._statistics)
            for name in ("diffusion", "encoder", "scored", "read", "response")
        }
        among = sum(s["response"] * s["replaced_fraction"] for s in self._statistics)
        return {
            **super().describe(seconds),
            "replaced_fraction": among / max(1.0, totals["response"]),
            "diffusion_loss": totals["diffusion"] / max(1.0, totals["scored"]),
            "encoder_loss": totals["encoder"] / max(1.0, totals["read"]),
        }


def refuse_other_corruption(name: str, objective: Objective, known: Facts) -> None:
    """Raises UserError where an objective's noise is not that of the model."""
    replaces = isinstance(objective, UniformObjective)
    if replaces and known.corruption == "mask":
        raise UserError(
            f"objective {name} replaces tokens by others, and this model predicts masks",
            mend="use --objective sft, or another one that masks",
        )
    if not replaces and known.corruption == "uniform":
        raise UserError(
            f"objective {name} masks tokens, and this model has no mask token: its noise replaces tokens by others",
            mend="use --objective diffusion-gemma",
        )
