"""A run's folder: what may be started or resumed in it, and the record it keeps."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState

from remask import config as configs
from remask.config import EngineConfig, LoraConfig
from remask.environment import command, hardware, versions
from remask.errors import UserError
from remask.files import write_atomically
from remask.models.load import pick_device
from remask.training.checkpoints import checkpoints, find


class RunConfig(Protocol):
    """What the config of every kind of run has."""

    @property
    def output_dir(self) -> str: ...
    @property
    def resume(self) -> str | None: ...
    @property
    def overwrite(self) -> bool: ...
    @property
    def device(self) -> str: ...
    @property
    def lora(self) -> LoraConfig: ...
    @property
    def trainer(self) -> EngineConfig: ...


def check_least(least: dict[str, tuple[float | None, float]]) -> None:
    """Raises UserError for a value (where given) that is below the least it can be."""
    for name, (value, low) in least.items():
        if value is not None and not value >= low:  # NaN is refused too
            raise UserError(f"{name} = {value}", mend=f"it is {low} or more")


def check_engine(config: RunConfig) -> None:
    """Raises UserError for a setting, common to all runs, that is out of its range."""
    t = config.trainer
    check_least(
        {
            "lora.rank": (config.lora.rank, 0),
            "lora.dropout": (config.lora.dropout, 0),
            "trainer.learning_rate": (t.learning_rate, 0),
            "trainer.weight_decay": (t.weight_decay, 0),
            "trainer.max_grad_norm": (t.max_grad_norm, 0),
            "trainer.per_device_train_batch_size": (t.per_device_train_batch_size, 1),
            "trainer.logging_steps": (t.logging_steps, 1),
            "trainer.eval_steps": (t.eval_steps, 0),
            "trainer.save_steps": (t.save_steps, 0),
            "trainer.save_total_limit": (t.save_total_limit, 2),  # the old one goes before the new one is sealed
        }
    )
    if config.lora.rank and (not config.lora.dropout < 1 or not config.lora.targets):
        raise UserError("lora.dropout is not below 1, or lora.targets is empty", mend="see --help")
    if config.resume and config.overwrite:
        raise UserError("both resume and overwrite are set", mend="give one of them")
    if Path(config.output_dir).exists() and not Path(config.output_dir).is_dir():
        raise UserError("is a file, not a folder", where=config.output_dir, mend="give another output_dir")


FREE_ON_RESUME = frozenset(
    {
        "resume",
        "overwrite",
        "output_dir",
        "device",
        "max_steps",
        "trainer.logging_steps",
        "trainer.eval_steps",
        "trainer.save_steps",
        "trainer.save_total_limit",
        "trainer.report_to",
    }
)
"""What a resumed run may set anew: where it stops (and with that the learning rate's schedule) and what it writes."""


SPLITS_A_STEP = frozenset({"trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"})
"""How the rows of an optimiser step are shared among processes and taken in turns; not which rows they are."""


def rows_per_step(config: RunConfig) -> int:
    """Rows of an optimiser step, on all processes together."""
    t: Any = config.trainer
    processes = PartialState(cpu=pick_device(config.device) == "cpu").num_processes
    return t.per_device_train_batch_size * t.gradient_accumulation_steps * processes


def refuse_another_config(config: Any, folder: Path, *, free: frozenset[str], rows: int | None = None) -> None:
    """Raises UserError where the run to go on with was started with other settings than `free` ones, naming them, or
    with another number of rows in an optimiser step. Any number of processes may share those out where the run's record
    says that it makes no difference.
    """
    path = folder / "config.yaml"
    if not path.exists():
        return
    recorded = _recorded(folder)
    stored = recorded.get("rows_per_step", rows)
    if rows is not None and stored != rows:
        raise UserError(
            f"cannot resume with steps of {rows} rows: they had {stored}",
            where=str(folder),
            mend="trainer.per_device_train_batch_size × trainer.gradient_accumulation_steps × processes must be "
            f"{stored}",
        )
    if recorded.get("splits_alike"):
        free |= SPLITS_A_STEP
    before, now = _flat(asdict(configs.load(type(config), path))), _flat(asdict(config))
    differing = [
        f"{key} was {before[key]!r}, is {now[key]!r}"
        for key in now
        if key not in FREE_ON_RESUME | free and before[key] != now[key]
    ]
    if differing:
        split = "splits_alike" in recorded and any(now[key] != before[key] for key in SPLITS_A_STEP & now.keys() - free)
        why = " (rows' fill or rates depend on their batch mates)" if split else ""
        raise UserError(
            f"cannot resume with other settings: {'; '.join(differing)}{why}",
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


def starting_point(config: RunConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from. Raises UserError for a folder with a run and neither resume nor overwrite."""
    if config.resume:
        return find(folder, config.resume)
    if not config.overwrite and ((folder / "run.json").exists() or checkpoints(folder)):
        raise UserError(
            "holds a run already", where=str(folder), mend="--resume auto goes on with it, --overwrite starts anew"
        )
    return None


def status_of(folder: Path) -> str | None:
    return _recorded(folder).get("status")


def _recorded(folder: Path) -> dict[str, Any]:
    """The folder's run.json; empty where there is none that can be read."""
    try:
        values = json.loads((folder / "run.json").read_text())
    except (ValueError, OSError):
        return {}
    return values if isinstance(values, dict) else {}


def prepare_folder(config: Any, folder: Path, *, fresh: bool) -> None:
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
    "completions.jsonl",
    "run.json",
    "masking.json",
    "class_accuracy.json",
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
    """`run.json`: what was run, on what, and how it ended. `described` is what its kind of run says of itself."""

    def __init__(self, folder: Path, described: dict[str, Any], *, device: str, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.values: dict[str, Any] = {
            "kind": "remask.run",
            **described,
            "versions": versions(),
            "hardware": hardware(pick_device(device)),
            "command": command(),
        }
        self.write("running", 0.0)

    def write(self, status: str, seconds: float, metrics: dict[str, float] | None = None) -> None:
        if not self.enabled:
            return
        values = self.values | {"status": status, "seconds": round(seconds, 2), "metrics": metrics or {}}
        write_atomically(self.folder / "run.json", json.dumps(values, indent=1))
