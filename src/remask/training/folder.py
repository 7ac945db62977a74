"""A run's folder: what may be started or resumed in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import PartialState

from remask.config import EngineConfig, LoraConfig
from remask.errors import UserError
from remask.files import refuse_unwritable_folder
from remask.models.gguf import gguf_file, gguf_parts
from remask.models.load import pick_device, resolve
from remask.models.lora import base_of, is_adapter
from remask.training.begun import CONFIG, RECORD, Begun, check_config, read_kept, recorded
from remask.training.checkpoints import checkpoints, digest_of_file, find, refuse_files, step_of
from remask.training.saving import WEIGHTS


class RunConfig(Protocol):
    """The fields that the config of every kind of run has."""

    @property
    def model(self) -> str: ...
    @property
    def output_dir(self) -> str: ...
    @property
    def max_steps(self) -> int | None: ...
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
            raise UserError(f"{name} = {value}", mend=f"give {low} or more")


MOST = 1_000_000
"""The most that each setting of a step may ask for: more means something else, and would run for days without
a word."""

MOST_DRAWS = 4096
"""The most noise draws of one likelihood, which is read from as many forward passes."""


def check_most(most: dict[str, tuple[int | None, int]]) -> None:
    """Raises UserError for a number (where given) that is above what any run can do."""
    for name, (value, high) in most.items():
        if value is not None and value > high:
            raise UserError(f"{name} = {value}", mend=f"give {high} or less")


def check_finite(values: dict[str, float]) -> None:
    """Raises UserError for a value that is infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(f"{name} = {value}", mend="give a number")


def check_engine(config: RunConfig) -> None:
    """Raises UserError for a setting, common to all runs, that is out of its range."""
    t = config.trainer
    check_least(
        {
            "lora.rank": (config.lora.rank, 0),
            "lora.dropout": (config.lora.dropout, 0),
            "trainer.learning_rate": (t.learning_rate, 0),
            "trainer.weight_decay": (t.weight_decay, 0),
            "trainer.warmup_steps": (t.warmup_steps, 0),
            "trainer.max_grad_norm": (t.max_grad_norm, 0),
            "trainer.per_device_train_batch_size": (t.per_device_train_batch_size, 1),
            "trainer.logging_steps": (t.logging_steps, 1),
            "trainer.eval_steps": (t.eval_steps, 0),
            "trainer.save_steps": (t.save_steps, 0),
            "trainer.save_total_limit": (t.save_total_limit, 2),  # the old one goes before the new one is sealed
        }
    )
    check_finite({f"trainer.{name}": getattr(t, name) for name in ("learning_rate", "weight_decay", "warmup_steps")})
    if not config.output_dir.strip():
        raise UserError("output_dir is empty", mend="name a folder for the run")
    if config.lora.rank and not config.lora.dropout < 1:
        raise UserError(f"lora.dropout = {config.lora.dropout}", mend="give a number below 1")
    if config.lora.rank and not config.lora.targets:
        raise UserError("lora.targets is empty", mend="name layers, such as q_proj v_proj, or all-linear")
    if config.resume and config.overwrite:
        raise UserError("both resume and overwrite are set", mend="give one of them")
    refuse_unwritable_folder(config.output_dir)


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
"""The settings that a resumed run may change: where it stops (and with that the learning rate's schedule) and what it
writes."""


SPLITS_A_STEP = frozenset({"trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"})
"""The settings of how the rows of an optimiser step are shared among processes and taken in turns; they do not change
which rows they are."""


def rows_per_step(config: RunConfig) -> int:
    """Return the number of rows of an optimiser step, on all processes together."""
    t: Any = config.trainer
    processes = PartialState(cpu=pick_device(config.device) == "cpu").num_processes
    return t.per_device_train_batch_size * t.gradient_accumulation_steps * processes


def lasting(config: Any) -> dict[str, Any]:
    """Return the settings that a resumed run may not change, by their dotted names: two runs that share them and their
    data have the same model at the same step.
    """
    return {key: value for key, value in _flat(asdict(config)).items() if key not in FREE_ON_RESUME}


def refuse_another_config(
    config: Any, begun: Begun, *, free: frozenset[str], rows: Callable[[], int] | None = None
) -> None:
    """Raises UserError where the run to go on with was started with other settings than `free` ones, naming them, or
    with another number of rows in an optimiser step. Any number of processes may share those out where the run's record
    says that it makes no difference.
    """
    own = rows() if rows is not None else None
    if own is not None and begun.rows_per_step is not None and begun.rows_per_step != own:
        raise UserError(
            f"cannot resume with steps of {own} rows: they had {begun.rows_per_step}",
            where=str(begun.folder),
            mend="trainer.per_device_train_batch_size × trainer.gradient_accumulation_steps × processes must be "
            f"{begun.rows_per_step}",
        )
    if begun.splits_alike:
        free |= SPLITS_A_STEP
    before, now = _flat(asdict(begun.config)), _flat(asdict(config))
    differing = [
        f"{key} was {before[key]!r}, is {now[key]!r}"
        for key in now
        if key not in FREE_ON_RESUME | free and before[key] != now[key]
    ]
    if differing:
        split = begun.splits_alike is not None and any(now[k] != before[k] for k in SPLITS_A_STEP & now.keys() - free)
        why = " (rows' fill or rates depend on the other rows of their batch)" if split else ""
        raise UserError(
            f"cannot resume with other settings: {'; '.join(differing)}{why}",
            where=str(begun.folder),
            mend=f"use --config {begun.folder / CONFIG}, or another output_dir",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"trainer": {"bf16": …}} → {"trainer.bf16": …}; `trainer.extra` stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key != "extra"
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def starting_point(
    config: RunConfig, folder: Path, *, free: frozenset[str], rows: Callable[[], int] | None = None
) -> Path | None:
    """Return the checkpoint to resume from, or None where the run begins.

    Raises UserError for a folder that holds a run or a model that the settings do not allow to be replaced, and for a
    checkpoint of a run with other settings (`refuse_another_config`) or past the run's end.
    """
    model = Path(config.model).resolve()
    if folder.resolve() == (model.parent if model.is_file() else model):
        raise UserError("is the model to train from", where=str(folder), mend="give another output_dir")
    refuse_files(folder)
    if config.resume:
        check_config(folder)
        recorded(folder)
    checkpoint = find(folder, config.resume) if config.resume else None
    if checkpoint is None or checkpoint.parent.resolve() != folder.resolve():
        refuse_taken(config, folder)
    if checkpoint is None:
        return None
    refuse_another_config(config, Begun.of_checkpoint(checkpoint, type(config)), free=free, rows=rows)
    if config.max_steps is not None and step_of(checkpoint) > config.max_steps:
        raise UserError(
            f"the checkpoint is past max_steps = {config.max_steps}",
            where=str(checkpoint),
            mend="raise max_steps, or --resume an earlier checkpoint",
        )
    return checkpoint


def refuse_taken(config: RunConfig, folder: Path) -> None:
    """Raises UserError where a run that begins would replace another, or a model. With `--resume auto` it may begin
    again what never came to a checkpoint.
    """
    if config.overwrite:
        return
    begun = (folder / RECORD).exists()
    if config.resume != "auto" and (begun or checkpoints(folder)):
        raise UserError(
            "holds a run already", where=str(folder), mend="--resume auto goes on with it, --overwrite starts anew"
        )
    if not begun and any(any(folder.glob(name)) for name in WEIGHTS):
        raise UserError("holds a model", where=str(folder), mend="give another output_dir, or --overwrite")


def is_finished(
    config: RunConfig, folder: Path, *, free: frozenset[str], rows: Callable[[], int] | None = None
) -> bool:
    """Return whether `--resume auto` has nothing to do: every step is done and the model is there.

    Raises UserError where a finished run had other settings, is to be longer and kept no checkpoint, or is to be
    shorter than it was.
    """
    if config.resume != "auto" or status_of(folder) != "finished" or not (folder / CONFIG).exists():
        return False
    begun = Begun.of_folder(folder, type(config))
    refuse_another_config(config, begun, free=free, rows=rows)
    was = begun.config.max_steps
    if was == config.max_steps:
        return any(folder.glob("*.safetensors"))
    if was is not None and config.max_steps is not None and config.max_steps < was:
        raise UserError(
            f"max_steps = {config.max_steps}: the run finished with {was}", where=str(folder), mend="raise max_steps"
        )
    if not checkpoints(folder):
        raise UserError(
            f"finished (max_steps {was}) and kept no checkpoint to go on from",
            where=str(folder),
            mend=f"train from it: --model {folder} and another output_dir",
        )
    return False


def refuse_other_data(described: dict[str, Any], checkpoint: Path) -> None:
    """Raises UserError where the checkpoint's run was trained on other rows, whatever their source is called."""
    data = described["data"]
    if read_kept(checkpoint)["data"]["digest"] != data["digest"]:
        raise UserError(
            f"{data['source']} is not what the run began with: its rows have changed",
            where=str(checkpoint.parent),
            mend="bring the data back as they were, or start anew with --overwrite",
        )


def refuse_other_base(digest: str, checkpoint: Path, model: str) -> None:
    """Raises UserError where the model that the run began with, which it still reads, has other weights now."""
    if read_kept(checkpoint).get("base") != digest:
        raise UserError(
            "its weights are not those that the run began with, and still needs",
            where=model,
            mend="bring them back, or start anew with --overwrite",
        )


def digest_of_base(model: str) -> str:
    """Return a digest of the files of a model's weights, and where it is an adapter of those of its base."""
    folder, found = Path(resolve(model)), hashlib.blake2b(digest_size=16)
    stored = gguf_file(folder)
    for path in gguf_parts(stored) if stored else sorted({path for name in WEIGHTS for path in folder.glob(name)}):
        found.update(f"{path.name} {digest_of_file(path)}".encode())
    if is_adapter(str(folder)):
        found.update(digest_of_base(base_of(str(folder))).encode())
    return found.hexdigest()


def digest(rows: Iterable[Sequence[Sequence[int]]]) -> str:
    """Return one short name for rows of token sequences, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        for tokens in row:
            found.update(len(tokens).to_bytes(8, "little") + np.asarray(tokens, dtype=np.int64).tobytes())
    return found.hexdigest()


def status_of(folder: Path) -> str | None:
    """Return the status that the folder's record says, or None."""
    return recorded(folder).get("status")
