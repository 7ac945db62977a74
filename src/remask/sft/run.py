"""One fine-tuning run, from a config to a folder with the model, its metrics and all that is needed to repeat it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import prepare_model_for_kbit_training
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from remask.config import SftConfig
from remask.data.canvas import Fill, Rows, build_rows
from remask.data.collate import Collator
from remask.data.sources import Loaded, load_examples
from remask.diffusion.objective import Objective
from remask.errors import UserError
from remask.files import write_atomically
from remask.models.facts import Facts, facts
from remask.models.load import copy_code, load, pick_device, quiet_transformers
from remask.models.load import resolve as resolve_model
from remask.models.lora import add_adapter
from remask.sft.callbacks import (
    EpochCallback,
    FiniteGradientCallback,
    MetricsCallback,
    ProgressCallback,
    SealCallback,
    StopCallback,
)
from remask.sft.diagnostics import masking_by_entropy
from remask.sft.folder import Record, check_numbers, prepare_folder, refuse_another_config, starting_point, status_of
from remask.sft.presets import resolve
from remask.sft.probe import frozen_probe
from remask.sft.trainer import SftTrainer, frozen_copy
from remask.tasks.generated import generated_examples, is_generated
from remask.tasks.generator import Split


@dataclass(frozen=True)
class Outcome:
    """Where the run is, whether it reached its end (or which signal stopped it), and its last metrics."""

    folder: Path
    finished: bool
    signal: int | None
    metrics: dict[str, float]
    seconds: float


def run_sft(config: SftConfig, *, label: str | None = None, quiet: bool = False) -> Outcome:
    """Train as the config says. Everything a user can get wrong is found before the output folder is touched."""
    started = time.perf_counter()
    check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())
    if config.probe.policy == "frozen" and not objective.uses_probe and not quiet:
        print(f"{config.objective} reads no importance: probe.policy frozen changes nothing", file=sys.stderr)
    folder = Path(config.output_dir)
    checkpoint = starting_point(config, folder)
    if checkpoint is not None:
        refuse_another_config(config, folder)
    if checkpoint is None and config.resume and (folder / "run.json").exists() and status_of(folder) == "finished":
        return Outcome(folder, True, None, {}, 0.0)
    trainer, tokenizer, train = _build(config, folder, objective)
    main = trainer.is_world_process_zero()
    PartialState().wait_for_everyone()  # all ranks have looked at the folder before one writes into it
    if main:
        prepare_folder(config, folder, fresh=checkpoint is None)
    PartialState().wait_for_everyone()
    progress_callback, stop = ProgressCallback(label or config.objective, enabled=not quiet), StopCallback()
    record = Record(folder, config, objective, train, enabled=main)
    try:
        refresh = frozen_probe(config, trainer, tokenizer, folder, checkpoint, quiet)
        for callback in (
            EpochCallback(trainer.sampler),
            *refresh,
            FiniteGradientCallback(),
            MetricsCallback(folder / "metrics.jsonl"),
            progress_callback,
            stop,
            SealCallback(),
        ):
            trainer.add_callback(callback)
        if main and checkpoint is None:
            write_atomically(folder / "masking.json", json.dumps(masking_by_entropy(trainer)))
        with stop, quiet_transformers():
            metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
            if stop.stopped is not None and trainer.state.global_step < trainer.state.max_steps:
                seconds = time.perf_counter() - started
                record.write("stopped", seconds)
                return Outcome(folder, False, int(stop.stopped), metrics, seconds)
            # Every step is done: save first, so that nothing that happens in the evaluation can lose the model.
            trainer.save_model(str(folder))
            if main:
                tokenizer.save_pretrained(str(folder))
                if not config.lora.rank:
                    copy_code(resolve_model(config.model), folder)
            if config.eval_data:
                metrics |= _last_evaluation(trainer) or trainer.evaluate()
    except BaseException:
        record.write("failed", time.perf_counter() - started)
        raise
    finally:
        progress_callback.close()
    record.write("finished", time.perf_counter() - started, metrics)
    return Outcome(folder, True, None, metrics, time.perf_counter() - started)


def _build(config: SftConfig, folder: Path, objective: Objective) -> tuple[SftTrainer, Any, Rows]:
    """Model, rows and trainer, from what the config names. Writes nothing."""
    args = _training_arguments(config, folder)
    if config.quantization and not config.lora.rank:
        raise UserError(
            f"weights of {config.quantization} cannot be trained", mend="train adapters on them: --lora.rank 16"
        )
    if config.quantization == "4bit" and args.device.type == "cpu":
        raise UserError(
            "4-bit weights are trained on CUDA only: the CPU kernels of bitsandbytes have no gradient",
            mend="use --quantization 8bit, or none",
        )
    place = str(args.device) if config.quantization else "cpu"
    model, tokenizer = load(config.model, dtype=config.dtype, device=place, quantization=config.quantization)
    if hasattr(model, "merge_and_unload"):  # a LoRA run goes on from its merged weights
        model = model.merge_and_unload()
    known = facts(model, tokenizer, where=config.model)
    fill = Fill.parse(config.canvas.fill or known.fill)
    train, held_out = _rows(config, tokenizer, known)
    compares = objective.uses_reference_model and not config.lora.rank  # with LoRA the reference is the base
    reference = frozen_copy(model).to(args.device) if compares else None
    if config.lora.rank:
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(config.seed)
            if config.quantization:
                model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
            model = add_adapter(model, config.lora, base_name=_base_name(config.model))
    else:
        model.requires_grad_(True)
    collator = Collator(fill, known.eos_ids[0], config.canvas.max_length, config.seed)
    try:
        trainer = SftTrainer(
            model,
            args,
            objective=objective,
            rows=train.rows,
            collator=collator,
            mask_id=known.mask_id,
            eval_rows=held_out.rows if held_out else (),
            eval_draws=config.trainer.eval_draws,
            log_every=config.trainer.logging_steps,
            reference=reference,
            eval_dataset=held_out.rows if held_out else None,
            processing_class=tokenizer,
        )
    except (RuntimeError, ValueError, ImportError, OSError) as error:  # a tracker that is unknown or not installed
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}", mend="see `remask sft --help`") from error
    trainer.remove_callback(PrinterCallback)
    return trainer, tokenizer, train


def _last_evaluation(trainer: SftTrainer) -> dict[str, float] | None:
    """The held-out losses, where the last step was evaluated already."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return {key: entry[key] for key in ("eval_loss", "eval_nll")}
    return None


def _rows(config: SftConfig, tokenizer: Any, known: Facts) -> tuple[Rows, Rows | None]:
    def read(source: str, split: Split) -> Rows:
        if is_generated(source):
            loaded = Loaded(generated_examples(source, split=split, prompt_style=known.prompt_style))
        else:
            loaded = load_examples(source, on_bad_row=config.on_bad_row)
        built = build_rows(
            loaded.examples,
            tokenizer,
            max_length=config.canvas.max_length,
            over_long=config.canvas.over_long,
            on_bad_row=config.on_bad_row,
        )
        built.skipped = loaded.skipped + built.skipped
        for name, count in (
            ("truncated", built.truncated),
            ("dropped", built.dropped),
            ("skipped", len(built.skipped)),
        ):
            if count:
                print(f"{source}: {count} of {len(loaded.examples)} rows {name}", file=sys.stderr)
        return built

    return read(config.data, "train"), read(config.eval_data, "validation") if config.eval_data else None


def _training_arguments(config: SftConfig, folder: Path) -> TrainingArguments:
    """Transformers' arguments. Logging happens at every step: the trainer averages over `logging_steps` itself."""
    t = config.trainer
    known = {f.name for f in fields(TrainingArguments)}
    unknown = sorted(set(t.extra) - known)
    if unknown:
        raise UserError(
            f"trainer.extra: {', '.join(unknown)}: no such argument", mend="see transformers.TrainingArguments"
        )
    held_out = bool(config.eval_data)
    if t.eval_steps and not held_out:
        print("trainer.eval_steps has no effect without eval_data", file=sys.stderr)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": t.learning_rate,
        "num_train_epochs": t.num_train_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": t.per_device_train_batch_size,
        "per_device_eval_batch_size": t.per_device_eval_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "lr_scheduler_type": t.lr_scheduler_type,
        "warmup_steps": t.warmup_steps,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if held_out and t.eval_steps else "no",
        "eval_steps": t.eval_steps or None,
        "save_strategy": "steps" if t.save_steps else "no",
        "save_steps": t.save_steps or 500,
        "save_total_limit": t.save_total_limit,
        "bf16": t.bf16,
        "activation_checkpointing": t.gradient_checkpointing,
        "report_to": [name for name in t.report_to if name != "none"],
        "dataloader_num_workers": t.dataloader_num_workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": pick_device(config.device) == "cpu",
        "seed": config.seed,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": [],
        "log_level": "error",
    }
    taken = sorted(set(t.extra) & set(values))
    if taken:
        raise UserError(
            f"trainer.extra: {', '.join(taken)}: set by Remask", mend="use the option of that name, where there is one"
        )
    try:
        return TrainingArguments(**{**values, **t.extra})
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}", mend="see `remask sft --help`") from error


def _base_name(model: str) -> str:
    """What an adapter names as its base: a local folder by its whole path, so that it is found from anywhere."""
    return str(Path(model).resolve()) if model != "tiny" and Path(model).exists() else model
