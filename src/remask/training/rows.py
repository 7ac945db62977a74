"""What training on rows of data shares, whatever a row is: its loader and epochs, its rows' faults and their names."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remask.errors import UserError

EVALUATION_SEED = 1 << 20
"""The seed of the noise of held-out rows, the same for every run and seed."""


def even_multiple(args: TrainingArguments) -> int:
    """Return the number of which an epoch's visits are to be a multiple, so that each rank has as many batches as the
    others.
    """
    return args.per_device_train_batch_size * args.world_size if args.world_size > 1 else 1


def row_loader(trainer: Trainer, dataset: Dataset, sampler: Sampler, collator: Callable[[Any], Any]) -> DataLoader:
    """Return the loader of an epoch's batches, shared among the ranks."""
    args = trainer.args
    return trainer.accelerator.prepare(
        DataLoader(
            dataset,
            batch_size=args.per_device_train_batch_size,
            sampler=sampler,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            drop_last=args.dataloader_drop_last,
        )
    )


def no_sync(trainer: Trainer, model: Any) -> AbstractContextManager[None]:
    """Return a context in which a rank's gradients are not yet shared with the others, for the parts of a micro-batch;
    for whole micro-batches see `training_arguments`. Those of sharded weights are shared at once: kept back, they would
    take the memory of the whole model.
    """
    apart = trainer.args.world_size > 1 and not trainer.is_fsdp_enabled
    return trainer.accelerator.no_sync(model) if apart else nullcontext()


def backward(trainer: Trainer, loss: Tensor) -> None:
    """Add the gradient of a part of a micro-batch; the engine does so for the last part. DeepSpeed's `backward` would
    take an optimiser step after each part.
    """
    if trainer.is_deepspeed_enabled:
        wrapped = trainer.accelerator.deepspeed_engine_wrapped
        wrapped.backward(loss, sync_gradients=False, scale_wrt_gas=False)
    else:
        trainer.accelerator.backward(loss)


class Placed(Protocol):
    """A row that says where it came from."""

    where: str


def refuse_nonfinite(trainer: Trainer, values: Tensor, rows: Sequence[Placed]) -> None:
    """Raises UserError naming the rows of the micro-batch whose value is not finite."""
    bad = (~torch.isfinite(values.detach())).nonzero().flatten().tolist()
    if bad:
        named = "; ".join(rows[i].where for i in bad[:4]) + (f" and {len(bad) - 4} more rows" if len(bad) > 4 else "")
        raise UserError(
            f"the loss is not finite at step {trainer.state.global_step + 1}, on {named}",
            where=trainer.args.output_dir,
            mend="see those rows, or start anew with a lower trainer.learning_rate; checkpoints, if any, are whole",
        )


class ByEpoch(Protocol):
    """A sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""


class EpochCallback(TrainerCallback):
    """A callback that tells the sampler which epoch begins, resumed or not."""

    def __init__(self, sampler: ByEpoch) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


def tell_beyond(model: Any, longest: int) -> None:
    """Say on stderr where rows are longer than the model was made for: sampling refuses what training can do."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and longest > limit:
        print(f"rows of up to {longest} tokens go beyond the {limit} positions the model was made for", file=sys.stderr)


def refuse_beyond_memory(model: Any, rows: int, longest: int, device: torch.device) -> None:
    """Raises UserError where the machine could not hold even one layer's input of a batch of so many tokens a row."""
    width = int(getattr(model.config, "hidden_size", 0) or getattr(model.config, "d_model", 1))
    needed, there = rows * longest * width * model.dtype.itemsize, _memory(device)
    if there is not None and needed > there:
        raise UserError(
            f"{rows} rows of {longest} tokens take {needed >> 30} GiB for one layer's input alone, of {there >> 30}",
            where=str(device),
            mend="lower canvas.max_length, or let canvas.fill be batch",
        )


def _memory(device: torch.device) -> int | None:
    """Bytes of the device; None where it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
