"""One preference run, from a config to a folder with the model, its metrics and all that is needed to repeat it."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from remask.choices import Split
from remask.config import DpoConfig
from remask.data.canvas import Fill, Rows, tell_faults
from remask.errors import UserError
from remask.models.facts import Facts
from remask.preference.data import Pair, PairCollator, build_pairs, load_pairs
from remask.preference.loss import PreferenceObjective
from remask.preference.presets import resolve
from remask.preference.trainer import PreferenceTrainer
from remask.progress import working
from remask.training.arguments import training_arguments
from remask.training.folder import (
    MOST,
    MOST_DRAWS,
    check_engine,
    check_least,
    check_most,
    digest,
    rows_per_step,
)
from remask.training.model import load_trainable, trainable, without_dropout
from remask.training.presets import recorded
from remask.training.rows import EpochCallback, refuse_beyond_memory, tell_beyond
from remask.training.run import Job, Outcome, carry_out, in_folder, last_evaluation, trainer_errors

FREE_ON_RESUME = frozenset(
    {
        "eval_data",
        "trainer.num_train_epochs",
        "trainer.per_device_eval_batch_size",
        "trainer.eval_draws",
        "trainer.dataloader_num_workers",
        "trainer.backward",
    }
)


def run_dpo(config: DpoConfig, *, label: str | None = None, quiet: bool = False) -> Outcome:
    """Train as the config says. Everything a user can get wrong is found before the output folder is touched."""
    started = time.perf_counter()
    check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())

    def train(folder: Path, checkpoint: Path | None) -> Outcome:
        trainer, tokenizer, pairs = _build(config, folder, objective)
        job = Job(
            config,
            trainer,
            tokenizer,
            described=_described(config, objective, pairs),
            checkpoint=checkpoint,
            begin=lambda _: [EpochCallback(trainer.sampler)],
            finish=lambda: last_evaluation(trainer) or trainer.evaluate() if config.eval_data else {},
            label=label or config.objective,
            quiet=quiet,
            started=started,
            compares=True,
        )
        return carry_out(job)

    rows = partial(rows_per_step, config)  # asked for on resuming only: it begins what TrainingArguments sets up
    return in_folder(config, free=FREE_ON_RESUME, rows=rows, train=train)


def check_numbers(config: DpoConfig) -> None:
    """Raises UserError for a setting out of its range, before anything is read or written."""
    t = config.trainer
    check_engine(config)
    check_least(
        {
            "seed": (config.seed, 0),
            "max_steps": (config.max_steps, 1),
            "canvas.max_length": (config.canvas.max_length, 2),
            "trainer.per_device_eval_batch_size": (t.per_device_eval_batch_size, 1),
            "trainer.gradient_accumulation_steps": (t.gradient_accumulation_steps, 1),
            "trainer.eval_draws": (t.eval_draws, 1),
            "trainer.dataloader_num_workers": (t.dataloader_num_workers, 0),
        }
    )
    check_most(
        {
            "choices.draws": (config.choices.draws, MOST_DRAWS),
            "trainer.eval_draws": (t.eval_draws, MOST_DRAWS),
            "trainer.per_device_train_batch_size": (t.per_device_train_batch_size, MOST),
            "trainer.gradient_accumulation_steps": (t.gradient_accumulation_steps, MOST),
        }
    )
    if not 0 < t.num_train_epochs < float("inf"):
        raise UserError(f"trainer.num_train_epochs = {t.num_train_epochs}", mend="give more than 0")
    if config.lora.dropout:
        raise UserError(
            f"lora.dropout = {config.lora.dropout}: with dropout the starting model would differ from its reference",
            mend="set it to 0",
        )
    if config.eval_data is not None and config.eval_data == config.data and "generated:" not in config.data:
        print(f"{config.eval_data}: the held-out pairs are the training pairs", file=sys.stderr)


def _described(config: DpoConfig, objective: PreferenceObjective, pairs: Rows[Pair]) -> dict[str, Any]:
    """What run.json says of a preference run."""
    return {
        "training": "dpo",
        "objective": recorded(config.objective, objective),
        "seed": config.seed,
        "rows_per_step": rows_per_step(config),
        "splits_alike": True,
        "model": config.model,
        **({"model_attention": config.model_attention} if config.model_attention else {}),
        "data": {
            "source": config.data,
            "rows": len(pairs.rows),
            "truncated": pairs.truncated,
            "dropped": pairs.dropped,
            "skipped": pairs.skipped,
            "digest": digest((row.prompt, row.response) for pair in pairs.rows for row in (pair.chosen, pair.rejected)),
        },
    }


def _build(
    config: DpoConfig, folder: Path, objective: PreferenceObjective
) -> tuple[PreferenceTrainer, Any, Rows[Pair]]:
    """Model, pairs and trainer, from what the config names. Writes nothing."""
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
    fill = Fill.parse(config.canvas.fill or known.fill)
    with working("pairs", enabled=args.process_index == 0):
        train, held_out = _pairs(config, tokenizer, known)
    longest = config.canvas.max_length if fill.kind == "max" else max(map(len, train.rows))
    refuse_beyond_memory(model, 2 * t.per_device_train_batch_size, longest, args.device)
    tell_beyond(model, longest)
    model = trainable(model, config.model, quantization=config.quantization, lora=config.lora, seed=config.seed)
    collator = PairCollator(
        fill, known.eos_ids[0], config.canvas.max_length, config.seed, objective.draws, objective.shared_noise
    )
    with trainer_errors("dpo"):
        trainer = PreferenceTrainer(
            without_dropout(model),
            args,
            objective=objective,
            pairs=train.rows,
            collator=collator,
            mask_id=known.mask_id,
            eval_pairs=held_out.rows if held_out else (),
            eval_draws=t.eval_draws,
            log_every=t.logging_steps,
            whole_backward=t.backward == "whole",
            processing_class=tokenizer,
        )
    return trainer, tokenizer, train


def _pairs(config: DpoConfig, tokenizer: Any, known: Facts) -> tuple[Rows[Pair], Rows[Pair] | None]:
    def read(source: str, split: Split) -> Rows[Pair]:
        loaded = load_pairs(source, split=split, prompt_style=known.prompt_style, on_bad_row=config.on_bad_row)
        built = build_pairs(
            loaded.examples,
            tokenizer,
            max_length=config.canvas.max_length,
            over_long=config.canvas.over_long,
            on_bad_row=config.on_bad_row,
            mask_id=known.mask_id,
        )
        built.skipped = loaded.skipped + built.skipped
        tell_faults(source, loaded, built)
        return built

    return read(config.data, "train"), read(config.eval_data, "validation") if config.eval_data else None
