"""One fine-tuning run, from a config to a folder with the model, its metrics and all that is needed to repeat it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from remask import config as configs
from remask.config import SftConfig
from remask.data.canvas import Fill, Rows, build_rows
from remask.data.collate import Collator
from remask.data.sources import Loaded, load_examples
from remask.diffusion.objective import Objective
from remask.environment import command, hardware, versions
from remask.errors import UserError
from remask.models.facts import Facts, facts
from remask.models.load import load, pick_device
from remask.models.lora import add_adapter
from remask.sft.callbacks import (
    EpochCallback,
    FiniteGradientCallback,
    MetricsCallback,
    ProgressCallback,
    SealCallback,
    StopCallback,
)
from remask.sft.checkpoints import checkpoints, find, write_atomically
from remask.sft.diagnostics import masking_by_entropy
from remask.sft.presets import resolve
from remask.sft.probe import CacheKey, SignalCache, build_cache, hash_model, hash_rows, hash_tokenizer
from remask.sft.trainer import SftTrainer, frozen_copy
from remask.tasks.base import Split
from remask.tasks.generated import generated_examples, is_generated


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
    _check_numbers(config)
    objective = resolve(config.objective, **config.choices.given())
    folder = Path(config.output_dir)
    checkpoint = _starting_point(config, folder)
    if checkpoint is not None:
        _refuse_another_config(config, folder)
    if checkpoint is None and config.resume and (folder / "run.json").exists() and _status(folder) == "finished":
        return Outcome(folder, True, None, {}, 0.0)
    args = _training_arguments(config, folder)
    model, tokenizer = load(config.model, dtype=config.dtype, device="cpu")
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
            model = add_adapter(model, config.lora, base_name=_base_name(config.model))
    else:
        model.requires_grad_(True)
    collator = Collator(fill, known.eos_ids[0], config.canvas.max_length, config.seed)
    progress_callback = ProgressCallback(label or config.objective, enabled=not quiet)
    stop = StopCallback()
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
    main = trainer.is_world_process_zero()
    PartialState().wait_for_everyone()  # all ranks have looked at the folder before one writes into it
    if main:
        _prepare_folder(config, folder, fresh=checkpoint is None)
    PartialState().wait_for_everyone()
    record = _Record(folder, config, objective, train, enabled=main)
    try:
        refresh = _frozen_probe(config, trainer, tokenizer, folder, checkpoint, quiet)
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
        with stop:
            metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
            if stop.stopped is not None and trainer.state.global_step < trainer.state.max_steps:
                seconds = time.perf_counter() - started
                record.write("stopped", seconds)
                return Outcome(folder, False, int(stop.stopped), metrics, seconds)
            # Every step is done: save first, so that nothing that happens in the evaluation can lose the model.
            trainer.save_model(str(folder))
            if main:
                tokenizer.save_pretrained(str(folder))
            if held_out:
                metrics |= _last_evaluation(trainer) or trainer.evaluate()
    except BaseException:
        record.write("failed", time.perf_counter() - started)
        raise
    finally:
        progress_callback.close()
    record.write("finished", time.perf_counter() - started, metrics)
    return Outcome(folder, True, None, metrics, time.perf_counter() - started)


def _last_evaluation(trainer: SftTrainer) -> dict[str, float] | None:
    """The held-out losses, where the last step was evaluated already."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return {key: entry[key] for key in ("eval_loss", "eval_nll")}
    return None


def _base_name(model: str) -> str:
    """What an adapter names as its base: a local folder by its whole path, so that it is found from anywhere."""
    return str(Path(model).resolve()) if model != "tiny" and Path(model).exists() else model


def _check_numbers(config: SftConfig) -> None:
    """Raises UserError for a number out of its range, before anything is read or written."""
    t = config.trainer
    least = {
        "seed": (config.seed, 0),
        "max_steps": (config.max_steps, 1),
        "canvas.max_length": (config.canvas.max_length, 2),
        "lora.rank": (config.lora.rank, 0),
        "lora.dropout": (config.lora.dropout, 0),
        "probe.every": (config.probe.every, 0),
        "trainer.learning_rate": (t.learning_rate, 0),
        "trainer.weight_decay": (t.weight_decay, 0),
        "trainer.max_grad_norm": (t.max_grad_norm, 0),
        "trainer.per_device_train_batch_size": (t.per_device_train_batch_size, 1),
        "trainer.per_device_eval_batch_size": (t.per_device_eval_batch_size, 1),
        "trainer.gradient_accumulation_steps": (t.gradient_accumulation_steps, 1),
        "trainer.logging_steps": (t.logging_steps, 1),
        "trainer.eval_steps": (t.eval_steps, 0),
        "trainer.eval_draws": (t.eval_draws, 1),
        "trainer.save_steps": (t.save_steps, 0),
        "trainer.save_total_limit": (t.save_total_limit, 1),
        "trainer.dataloader_num_workers": (t.dataloader_num_workers, 0),
    }
    for name, (value, low) in least.items():
        if value is not None and not value >= low:  # NaN is refused too
            raise UserError(f"{name} = {value}", mend=f"it is {low} or more")
    if not t.num_train_epochs > 0 and config.max_steps is None:
        raise UserError(f"trainer.num_train_epochs = {t.num_train_epochs}", mend="it is more than 0")
    if config.lora.rank and (not config.lora.dropout < 1 or not config.lora.targets):
        raise UserError("lora.dropout is not below 1, or lora.targets is empty", mend="see `remask sft --help`")
    if config.resume and config.overwrite:
        raise UserError("both resume and overwrite are set", mend="give one of them")
    if Path(config.output_dir).exists() and not Path(config.output_dir).is_dir():
        raise UserError("is a file, not a folder", where=config.output_dir, mend="give another output_dir")


FREE_ON_RESUME = {
    "resume",
    "overwrite",
    "output_dir",
    "device",
    "eval_data",
    "max_steps",
    "trainer.num_train_epochs",
    "trainer.per_device_eval_batch_size",
    "trainer.logging_steps",
    "trainer.eval_steps",
    "trainer.eval_draws",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.report_to",
    "trainer.dataloader_num_workers",
}
"""What a resumed run may set anew: where it stops and what it writes, never what it computes."""


def _refuse_another_config(config: SftConfig, folder: Path) -> None:
    """Raises UserError where the run to go on with was started with other settings, naming them."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    before, now = _flat(asdict(configs.load(SftConfig, path))), _flat(asdict(config))
    differing = [
        f"{key} was {before[key]!r}, is {now[key]!r}"
        for key in now
        if key not in FREE_ON_RESUME and before[key] != now[key]
    ]
    if differing:
        raise UserError(
            f"cannot resume with other settings: {'; '.join(differing)}",
            where=str(folder),
            mend=f"use --config {path}, or another output_dir",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"trainer": {"bf16": …}} → {"trainer.bf16": …}; `trainer.extra` stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key != "extra"
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _starting_point(config: SftConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from. Raises UserError for a folder with a run and neither resume nor overwrite."""
    if config.resume:
        return find(folder, config.resume)
    if not config.overwrite and ((folder / "run.json").exists() or checkpoints(folder)):
        raise UserError(
            "holds a run already", where=str(folder), mend="--resume auto goes on with it, --overwrite starts anew"
        )
    return None


def _status(folder: Path) -> str | None:
    try:
        return json.loads((folder / "run.json").read_text()).get("status")
    except (ValueError, OSError):
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


def _prepare_folder(config: SftConfig, folder: Path, *, fresh: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if fresh and config.overwrite:
        for old in checkpoints(folder):
            shutil.rmtree(old)
        shutil.rmtree(folder / "probe", ignore_errors=True)
        for name in WRITTEN:
            for old in folder.glob(name):
                old.unlink()
    write_atomically(folder / "config.yaml", configs.dump(replace(config, resume=None, overwrite=False)))


WRITTEN = (
    "metrics.jsonl",
    "run.json",
    "masking.json",
    "inspect.json",
    "eval.json",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
)
"""What a run leaves in its folder that must not be taken for the next run's: an adapter of the last would be loaded
instead of the new weights."""


class _Record:
    """`run.json`: what was run, on what, and how it ended."""

    def __init__(self, folder: Path, config: SftConfig, objective: Objective, rows: Rows, *, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.values: dict[str, Any] = {
            "kind": "remask.run",
            "objective": {"name": config.objective, **asdict(objective)},
            "probe": asdict(config.probe),
            "seed": config.seed,
            "model": config.model,
            "data": {
                "source": config.data,
                "rows": len(rows.rows),
                "truncated": rows.truncated,
                "dropped": rows.dropped,
                "skipped": rows.skipped,
            },
            "versions": versions(),
            "hardware": hardware(pick_device(config.device)),
            "command": command(),
        }
        self.write("running", 0.0)

    def write(self, status: str, seconds: float, metrics: dict[str, float] | None = None) -> None:
        if not self.enabled:
            return
        values = self.values | {"status": status, "seconds": round(seconds, 2), "metrics": metrics or {}}
        write_atomically(self.folder / "run.json", json.dumps(values, indent=1))


def _frozen_probe(
    config: SftConfig, trainer: SftTrainer, tokenizer: Any, folder: Path, checkpoint: Path | None, quiet: bool
) -> list[TrainerCallback]:
    """Give the trainer its cache where the probe is frozen; the callback refreshes it."""
    if config.probe.policy != "frozen" or not trainer.objective.uses_probe:
        return []
    refresh = ProbeRefresh(
        trainer,
        folder / "probe",
        every=config.probe.every,
        tokenizer_hash=hash_tokenizer(tokenizer),
        quiet=quiet,
    )
    start = Path(config.probe.cache) if config.probe.cache else folder / "probe" / "start.safetensors"
    if not refresh.restore(checkpoint):
        refresh.read_start(start)
    return [refresh]


class ProbeRefresh(TrainerCallback):
    """Keeps the frozen probe's cache: from the starting model, then anew every `every` epochs from the current one.

    Which cache a checkpoint was trained with is written into the checkpoint, so that a resumed run uses the same.
    """

    STATE = "probe.json"

    def __init__(self, trainer: SftTrainer, folder: Path, *, every: int, tokenizer_hash: str, quiet: bool) -> None:
        self.trainer, self.folder, self.every, self.quiet = trainer, folder, every, quiet
        self.tokenizer_hash, self.epoch = tokenizer_hash, 0

    def _key(self, model_hash: str) -> CacheKey:
        collator, signal = self.trainer.collator, self.trainer.objective.signal
        signal = "entropy" if signal == "permuted_entropy" else signal
        data = hash_rows(self.trainer.rows, collator.fill, collator.max_length)
        return CacheKey(model_hash, self.tokenizer_hash, data, signal)

    def read_start(self, path: Path) -> None:
        """The starting model's signals: from the file where there is one (it must match), else read and written."""
        key = self._key(hash_model(self.trainer.model))
        if path.exists():
            self.trainer.cache = SignalCache.load(path, key)
        else:
            self.trainer.cache = self._read(key)
            if self.trainer.is_world_process_zero():
                self.trainer.cache.save(path)

    def restore(self, checkpoint: Path | None) -> bool:
        """The cache a checkpoint was trained with, where that was a refreshed one."""
        if checkpoint is None or not (checkpoint / self.STATE).exists():
            return False
        state = json.loads((checkpoint / self.STATE).read_text())
        if state["epoch"] == 0:
            return False
        self.epoch = state["epoch"]
        self.trainer.cache = SignalCache.load(self._path(self.epoch), self._key(state["model"]))
        return True

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    def _read(self, key: CacheKey) -> SignalCache:
        trainer = self.trainer
        return build_cache(
            trainer.read_only(trainer.model),
            trainer.rows,
            trainer.collator,
            trainer.mask_id,
            trainer.objective.signal,
            key,
            batch_size=trainer.args.per_device_eval_batch_size,
            device=trainer.args.device,
            show_progress=not self.quiet and trainer.is_world_process_zero(),
        )

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        epoch = int((state.epoch or 0.0) + 1e-6)
        if self.every and epoch and epoch % self.every == 0 and epoch != self.epoch:
            self.trainer.cache = self._read(self._key(hash_model(self.trainer.model)))
            self.epoch = epoch
            if self.trainer.is_world_process_zero():
                self.trainer.cache.save(self._path(epoch))

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            assert self.trainer.cache is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            values = {"epoch": self.epoch, "model": self.trainer.cache.key.model}
            write_atomically(folder / self.STATE, json.dumps(values))
