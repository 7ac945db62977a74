"""One fine-tuning run, from a config to a folder with the model, its metrics and all that is needed to repeat it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from remask.choices import Split
from remask.config import SftConfig
from remask.data.canvas import Fill, Row, Rows, build_rows, tell_faults
from remask.data.collate import Collator
from remask.data.near import leave_out
from remask.data.sources import Loaded, load_examples
from remask.diffusion.objective import Objective
from remask.diffusion.uniform import UniformObjective
from remask.errors import UserError
from remask.files import as_json, write_atomically
from remask.models.facts import Facts
from remask.progress import working
from remask.sft.class_accuracy import ClassAccuracy
from remask.sft.diagnostics import Extent, extent_of, masking_by_entropy
from remask.sft.presets import resolve
from remask.sft.probe import frozen_probe
from remask.sft.trainer import SftTrainer
from remask.sft.uniform import UniformTrainer, refuse_other_corruption
from remask.tasks.generated import generated_examples, is_generated
from remask.training.arguments import training_arguments
from remask.training.callbacks import ProgressCallback
from remask.training.folder import (
    MOST,
    MOST_DRAWS,
    check_engine,
    check_least,
    check_most,
    digest,
    rows_per_step,
)
from remask.training.model import frozen_copy, load_trainable, trainable
from remask.training.presets import recorded
from remask.training.rows import EpochCallback, refuse_beyond_memory, tell_beyond
from remask.training.run import Job, Outcome, carry_out, in_folder, last_evaluation, trainer_errors
from remask.training.sharding import whole

FREE_ON_RESUME = frozenset(
    {
        "eval_data",
        "report.diagnostics",
        "trainer.num_train_epochs",
        "trainer.per_device_eval_batch_size",
        "trainer.eval_draws",
        "trainer.micro_batch_tokens",
        "trainer.dataloader_num_workers",
    }
)


def run_sft(config: SftConfig, *, label: str | None = None, quiet: bool = False) -> Outcome:
    """Train as the config says. Everything a user can get wrong is found before the output folder is touched."""
    started = time.perf_counter()
    check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())
    _tell_what_has_no_effect(config, objective, quiet=quiet)

    def train(folder: Path, checkpoint: Path | None) -> Outcome:
        return carry_out(
            _job(config, folder, checkpoint, objective, label=label or config.objective, quiet=quiet, started=started)
        )

    rows = partial(rows_per_step, config)  # asked for on resuming only: it begins what TrainingArguments sets up
    return in_folder(config, free=FREE_ON_RESUME, rows=rows, train=train)


def _tell_what_has_no_effect(config: SftConfig, objective: Objective, *, quiet: bool) -> None:
    if config.probe.policy == "frozen" and not objective.uses_probe and not quiet:
        print(f"{config.objective} reads no importance: probe.policy frozen changes nothing", file=sys.stderr)
    if config.probe.every and config.probe.policy != "frozen" and not quiet:
        print("probe.every has no effect: probe.policy is not frozen", file=sys.stderr)


def _job(
    config: SftConfig,
    folder: Path,
    checkpoint: Path | None,
    objective: Objective,
    *,
    label: str,
    quiet: bool,
    started: float,
) -> Job:
    trainer, tokenizer, train = build(config, folder, objective, SftTrainer)
    extent = extent_of(trainer, config.report.diagnostics, quiet=quiet or checkpoint is not None)
    by_class = ClassAccuracy(trainer, tokenizer, folder, count=extent.classes, quiet=quiet)

    probe = frozen_probe(config, trainer, tokenizer, folder, checkpoint, quiet)

    def begin(_: ProgressCallback) -> Sequence[TrainerCallback]:
        if probe is not None:
            probe.begin()
        if checkpoint is None and extent.masking:
            with whole(trainer):
                if trainer.is_world_process_zero():
                    counts = masking_by_entropy(trainer, rows=extent.masking, quiet=quiet)
                    write_atomically(folder / "masking.json", as_json(counts))
                    by_class.before()
        return [EpochCallback(trainer.sampler), *([probe] if probe else [])]

    def finish() -> dict[str, float]:
        if extent.classes:
            with whole(trainer):
                by_class.after()
        return last_evaluation(trainer) or trainer.evaluate() if config.eval_data else {}

    described = _described(config, trainer, train, extent)
    return Job(
        config,
        trainer,
        tokenizer,
        described,
        checkpoint,
        begin,
        finish,
        label,
        quiet,
        started,
        compares=objective.uses_reference_model,
    )


def check_numbers(config: SftConfig) -> None:
    """Raises UserError for a setting out of its range, before anything is read or written."""
    t = config.trainer
    check_engine(config)
    check_least(
        {
            "seed": (config.seed, 0),
            "max_steps": (config.max_steps, 1),
            "canvas.max_length": (config.canvas.max_length, 2),
            "probe.every": (config.probe.every, 0),
            "trainer.per_device_eval_batch_size": (t.per_device_eval_batch_size, 1),
            "trainer.gradient_accumulation_steps": (t.gradient_accumulation_steps, 1),
            "trainer.eval_draws": (t.eval_draws, 1),
            "trainer.micro_batch_tokens": (t.micro_batch_tokens, 0),
            "trainer.dataloader_num_workers": (t.dataloader_num_workers, 0),
        }
    )
    check_most(
        {
            "trainer.eval_draws": (t.eval_draws, MOST_DRAWS),
            "trainer.per_device_train_batch_size": (t.per_device_train_batch_size, MOST),
            "trainer.gradient_accumulation_steps": (t.gradient_accumulation_steps, MOST),
        }
    )
    if not 0 < t.num_train_epochs < float("inf"):
        raise UserError(f"trainer.num_train_epochs = {t.num_train_epochs}", mend="give more than 0")
    if config.eval_data is not None and config.eval_data == config.data and "generated:" not in config.data:
        print(f"{config.eval_data}: the held-out rows are the training rows", file=sys.stderr)


def _described(config: SftConfig, trainer: SftTrainer, rows: Rows[Row], extent: Extent) -> dict[str, Any]:
    """What run.json says of a fine-tuning run. Its steps may be split otherwise where neither length nor
    rates of a row depend on the others of its batch.
    """
    objective = trainer.objective
    among_mates = objective.uses_importance and objective.reference == "batch"
    return {
        "objective": recorded(config.objective, objective),
        "probe": asdict(config.probe),
        "seed": config.seed,
        "rows_per_step": rows_per_step(config),
        "splits_alike": not among_mates and trainer.collator.fill.kind != "batch",
        "model": config.model,
        **({"model_attention": config.model_attention} if config.model_attention else {}),
        "diagnostics": asdict(extent),
        "data": {
            "source": config.data,
            "rows": len(rows.rows),
            "truncated": rows.truncated,
            "dropped": rows.dropped,
            "skipped": rows.skipped,
            **({"apart_from": config.apart_from} if config.apart_from else {}),
            **({"near": [asdict(near) for near in rows.near]} if rows.near else {}),
            "digest": digest((row.prompt, row.response) for row in rows.rows),
        },
    }


T = TypeVar("T", bound=SftTrainer)


def build(config: SftConfig, folder: Path, objective: Objective, kind: type[T]) -> tuple[T, Any, Rows[Row]]:
    """Return the trainer (of this `kind`), tokenizer and rows that the config names. Nothing is written."""
    t = config.trainer
    if t.eval_steps and not config.eval_data:
        print("trainer.eval_steps has no effect without eval_data", file=sys.stderr)
    args = training_arguments(
        t,
        folder,
        device=config.device,
        seed=config.seed,
        evaluates=bool(config.eval_data),
        num_train_epochs=t.num_train_epochs,
        max_steps=config.max_steps or -1,
        per_device_eval_batch_size=t.per_device_eval_batch_size,
        gradient_accumulation_steps=t.gradient_accumulation_steps,
        dataloader_num_workers=t.dataloader_num_workers,
    )
    model, tokenizer, known = load_trainable(
        config.model,
        dtype=config.dtype,
        quantization=config.quantization,
        lora=config.lora,
        device=args.device,
        attention=config.model_attention,
    )
    refuse_other_corruption(config.objective, objective, known)
    trainer_kind: Any = kind
    if isinstance(objective, UniformObjective):
        if kind is not SftTrainer:
            raise UserError("profile measures objectives that mask", mend="time a run of remask sft instead")
        trainer_kind = UniformTrainer
    fill = Fill.parse(config.canvas.fill or known.fill)
    with working("rows", enabled=args.process_index == 0):
        train, held_out = _rows(config, tokenizer, known)
    longest = config.canvas.max_length if fill.kind == "max" else max(map(len, train.rows))
    refuse_beyond_memory(model, t.per_device_train_batch_size, longest, args.device)
    tell_beyond(model, longest)
    compares = objective.uses_reference_model and not config.lora.rank  # with LoRA the reference is the base
    reference = frozen_copy(model).to(args.device) if compares else None
    model = trainable(model, config.model, quantization=config.quantization, lora=config.lora, seed=config.seed)
    collator = Collator(fill, known.eos_ids[0], config.canvas.max_length, config.seed)
    with trainer_errors("sft"):
        trainer: T = trainer_kind(
            model,
            args,
            objective=objective,
            rows=train.rows,
            collator=collator,
            mask_id=known.mask_token_id,
            eval_rows=held_out.rows if held_out else (),
            eval_draws=t.eval_draws,
            micro_batch_tokens=t.micro_batch_tokens,
            log_every=t.logging_steps,
            reference=reference,
            eval_dataset=held_out.rows if held_out else None,
            processing_class=tokenizer,
        )
    return trainer, tokenizer, train


def _rows(config: SftConfig, tokenizer: Any, known: Facts) -> tuple[Rows[Row], Rows[Row] | None]:
    def read(source: str, split: Split) -> Rows[Row]:
        if is_generated(source):
            loaded = Loaded(generated_examples(source, split=split, prompt_style=known.prompt_style))
        else:
            loaded = load_examples(source, on_bad_row=config.on_bad_row)
        near = leave_out(source, loaded, config.apart_from) if split == "train" and config.apart_from else []
        built = build_rows(
            loaded.examples,
            tokenizer,
            max_length=config.canvas.max_length,
            over_long=config.canvas.over_long,
            on_bad_row=config.on_bad_row,
            mask_id=known.mask_token_id,
        )
        built.skipped = loaded.skipped + built.skipped
        built.near = near
        tell_faults(source, loaded, built)
        return built

    return read(config.data, "train"), read(config.eval_data, "validation") if config.eval_data else None
