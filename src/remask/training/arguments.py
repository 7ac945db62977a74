"""From Remask's settings to transformers' TrainingArguments."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from remask.config import EngineConfig
from remask.errors import UserError
from remask.models.load import pick_device


def training_arguments(
    engine: EngineConfig, folder: Path, *, device: str, seed: int, evaluates: bool, **own: Any
) -> TrainingArguments:
    """Return the engine's settings, with those of this kind of run (`own`). Raises UserError naming what is wrong in
    them.

    Logging happens at every step: trainers average over `logging_steps` themselves.
    """
    unknown = sorted(set(engine.extra) - {f.name for f in fields(TrainingArguments)})
    if unknown:
        raise UserError(
            f"trainer.extra: {', '.join(unknown)}: no such argument", mend="see transformers.TrainingArguments"
        )
    values = {**_values(engine, folder, device=device, seed=seed, evaluates=evaluates), **own}
    taken = sorted(set(engine.extra) & set(values))
    if taken:
        raise UserError(
            f"trainer.extra: {', '.join(taken)}: set by Remask", mend="use the option of that name, where there is one"
        )
    if unused := sorted(set(engine.extra) & UNUSED):
        raise UserError(f"trainer.extra: {', '.join(unused)}: has no effect on these losses", mend="leave it out")
    try:
        arguments = TrainingArguments(**{**_of_engine(), **values, **engine.extra})
        torch.optim.AdamW(
            [torch.zeros(1)],
            lr=arguments.learning_rate,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            eps=arguments.adam_epsilon,
        )
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(
            f"trainer: {str(error).strip().splitlines()[0]}", mend="`--help` lists the options of trainer"
        ) from error
    return arguments


def _values(engine: EngineConfig, folder: Path, *, device: str, seed: int, evaluates: bool) -> dict[str, Any]:
    """What Remask sets of every run."""
    return {
        "output_dir": str(folder),
        "learning_rate": engine.learning_rate,
        "per_device_train_batch_size": engine.per_device_train_batch_size,
        "lr_scheduler_type": engine.lr_scheduler_type,
        "warmup_steps": engine.warmup_steps,
        "weight_decay": engine.weight_decay,
        "max_grad_norm": engine.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluates and engine.eval_steps else "no",
        "eval_steps": engine.eval_steps or None,
        "save_strategy": "steps" if engine.save_steps else "no",
        "save_steps": engine.save_steps or 500,
        "save_total_limit": engine.save_total_limit,
        "bf16": engine.bf16,
        "activation_checkpointing": engine.gradient_checkpointing,
        "report_to": [name for name in engine.report_to if name != "none"],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": pick_device(device) == "cpu",
        "seed": seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": [],
        # Ranks may take different numbers of forwards (batches are cut into parts of rows of like length): one that
        # waited in a forward for the buffers of another, which are constants, would wait for ever.
        "ddp_broadcast_buffers": False,
        "log_level": "error",
        "log_level_replica": "error",
    }


UNUSED = frozenset({"label_smoothing_factor", "neftune_noise_alpha", "group_by_length"})
"""The arguments of transformers that are read only by parts of its trainer which Remask's trainers replace."""


def _of_engine() -> dict[str, Any]:
    """What `trainer.extra` may set otherwise. Under FSDP gradients are shared out after each micro-batch: kept back
    until a step's last, they would take the memory of the whole model.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return {}
    return {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
