"""One training run in its folder: prepared, trained, saved, evaluated, recorded; whatever ends it is written down."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from remask.chat_template import today
from remask.errors import UserError
from remask.models.load import copy_code, quiet_transformers
from remask.models.load import resolve as resolve_model
from remask.progress import working
from remask.training.callbacks import (
    FiniteGradientCallback,
    MetricsCallback,
    ProgressCallback,
    SealCallback,
    StopCallback,
)
from remask.training.card import write_card
from remask.training.folder import digest_of_base, refuse_other_base, refuse_other_data
from remask.training.kept import KeepCallback
from remask.training.lines import Lines
from remask.training.record import Record, prepare_folder
from remask.training.saving import stopped_at, whole_checkpoints, whole_model
from remask.training.sharding import (
    refuse_another_engine,
    refuse_to_lose_the_model,
    save_whole,
    settle_ddp,
    settle_fsdp,
)
from remask.training.window import WindowTrainer


@dataclass(frozen=True)
class Outcome:
    """Where the run is, whether it reached its end (or which signal stopped it), and its last metrics."""

    folder: Path
    finished: bool
    signal: int | None
    metrics: dict[str, float]
    seconds: float


def carry_out(
    config: Any,
    trainer: WindowTrainer,
    tokenizer: Any,
    *,
    described: dict[str, Any],
    checkpoint: Path | None,
    begin: Callable[[ProgressCallback], Sequence[TrainerCallback]],
    finish: Callable[[], dict[str, float]],
    label: str,
    quiet: bool,
    started: float,
    files: Sequence[Lines] = (),
    compares: bool = False,
) -> Outcome:
    """Train from the start or the checkpoint, and save.

    `begin` is called when the folder is ready and gives the run's own callbacks; `finish` evaluates what was saved.
    `files` are those of the run's own that grow with it; `compares` says that it reads the starting model to its end.
    """
    folder, main = Path(config.output_dir), trainer.is_world_process_zero()
    described = {**described, "date": today().isoformat(timespec="seconds")}
    kind = described.get("training", "sft")
    metrics_file = Lines(folder / "metrics.jsonl")
    base = None
    if main and (compares or config.lora.rank):
        with working("reading the starting model's weights", enabled=not quiet):
            base = digest_of_base(config.model)
    keep = KeepCallback(trainer, [metrics_file, *files], config, described, base)
    settle_fsdp(trainer)
    settle_ddp(trainer)
    refuse_to_lose_the_model(trainer)
    if checkpoint is not None:
        refuse_another_engine(trainer, checkpoint)
        refuse_other_data(described, checkpoint)
        if base is not None:
            refuse_other_base(base, checkpoint, config.model)
        keep.check(checkpoint)
    trainer.remove_callback(PrinterCallback)
    PartialState().wait_for_everyone()  # all ranks have looked at the folder before one writes into it
    if main:
        prepare_folder(config, folder, fresh=checkpoint is None)
    PartialState().wait_for_everyone()
    progress_callback, stop = ProgressCallback(label, enabled=not quiet), StopCallback()
    record = Record(folder, described, device=config.device, enabled=main, resumed=checkpoint is not None)
    try:
        keep.restore(checkpoint)
        own = begin(progress_callback)
        for callback in (
            *own,
            FiniteGradientCallback(),
            MetricsCallback(metrics_file),
            progress_callback,
            stop,
            keep,
            SealCallback(),
        ):
            trainer.add_callback(callback)
        with stop, quiet_transformers(), whole_checkpoints(trainer, kind):
            metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
            if stop.stopped is not None and trainer.state.global_step < trainer.state.max_steps:
                seconds = time.perf_counter() - started
                record.write("stopped", seconds)
                return Outcome(folder, False, int(stop.stopped), metrics, seconds)
            # Every step is done: save first, so that nothing that happens in the evaluation can lose the model.
            with whole_model(folder, kind):
                _save(config, trainer, tokenizer, folder)
            metrics |= finish()
            refuse_ruined(metrics, folder)
    except BaseException as error:
        cut = isinstance(error, KeyboardInterrupt)
        with suppress(UserError):  # no room for it either: the first error is the one to tell
            record.write("stopped" if cut else "failed", time.perf_counter() - started)
        if cut and main:
            print(stopped_at(folder, kind), file=sys.stderr)
        raise
    finally:
        progress_callback.close()
    record.write("finished", time.perf_counter() - started, metrics)
    if main:
        write_card(folder, config, record.values)
    return Outcome(folder, True, None, metrics, time.perf_counter() - started)


def _save(config: Any, trainer: Trainer, tokenizer: Any, folder: Path) -> None:
    save_whole(trainer, folder)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(str(folder))
        if not config.lora.rank:
            copy_code(resolve_model(config.model), folder)


def refuse_ruined(metrics: dict[str, float], folder: Path) -> None:
    """Raises UserError where the model that is left gives no numbers: the last step is the only one that no gradient
    comes after.
    """
    if bad := [name for name, value in metrics.items() if name.startswith("eval_") and not math.isfinite(value)]:
        raise UserError(
            f"no finite {', '.join(bad)} after the last step: the run has diverged, and the model it left is of no use",
            where=str(folder),
            mend="start anew with a lower trainer.learning_rate (--overwrite)",
        )


def already_finished(folder: Path) -> Outcome:
    return Outcome(folder, True, None, {}, 0.0)


def last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """What the last step's evaluation logged, where it was evaluated already."""
    for entry in reversed(trainer.state.log_history):
        if entry["step"] == trainer.state.global_step and any(name.startswith("eval_") for name in entry):
            return {name: value for name, value in entry.items() if name.startswith("eval_")}
    return None
