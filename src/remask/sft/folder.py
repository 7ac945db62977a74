"""A run's folder: what may be started or resumed in it, and the record it keeps."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.config import SftConfig
from remask.data.canvas import Rows
from remask.diffusion.objective import Objective
from remask.environment import command, hardware, versions
from remask.errors import UserError
from remask.files import write_atomically
from remask.models.load import pick_device
from remask.sft.checkpoints import checkpoints, find


def check_numbers(config: SftConfig) -> None:
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
        "trainer.save_total_limit": (t.save_total_limit, 2),  # the old one goes before the new one is sealed
        "trainer.dataloader_num_workers": (t.dataloader_num_workers, 0),
    }
    for name, (value, low) in least.items():
        if value is not None and not value >= low:  # NaN is refused too
            raise UserError(f"{name} = {value}", mend=f"it is {low} or more")
    if not t.num_train_epochs > 0 and config.max_steps is None:
        raise UserError(f"trainer.num_train_epochs = {t.num_train_epochs}", mend="it is more than 0")
    if config.lora.rank and (not config.lora.dropout < 1 or not config.lora.targets):
        raise UserError("lora.dropout is not below 1, or lora.targets is empty", mend="see `remask sft --help`")
    if config.eval_data is not None and config.eval_data == config.data and "generated:" not in config.data:
        print(f"{config.eval_data}: the held-out rows are the training rows", file=sys.stderr)
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
"""What a resumed run may set anew: where it stops (and with that the learning rate's schedule) and what it writes."""


def refuse_another_config(config: SftConfig, folder: Path) -> None:
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


def starting_point(config: SftConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from. Raises UserError for a folder with a run and neither resume nor overwrite."""
    if config.resume:
        return find(folder, config.resume)
    if not config.overwrite and ((folder / "run.json").exists() or checkpoints(folder)):
        raise UserError(
            "holds a run already", where=str(folder), mend="--resume auto goes on with it, --overwrite starts anew"
        )
    return None


def status_of(folder: Path) -> str | None:
    try:
        return json.loads((folder / "run.json").read_text()).get("status")
    except (ValueError, OSError):
        return None


def prepare_folder(config: SftConfig, folder: Path, *, fresh: bool) -> None:
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


class Record:
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
