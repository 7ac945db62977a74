"""One training run in its folder: prepared, trained, saved, evaluated, recorded; whatever ends it is written down."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from remask.chat_template import today
from remask.errors import UserError
from remask.locks import alone_in
from remask.models.load import copy_code, quiet_transformers
from remask.models.load import resolve as resolve_model
from remask.progress import working
from remask.training.begun import dated
from remask.training.callbacks import (
    FiniteGradientCallback,
    MetricsCallback,
    ProgressCallback,
    SealCallback,
    StopCallback,
)
from remask.training.card import write_card
from remask.training.folder import (
    digest_of_base,
    is_finished,
    refuse_other_base,
    refuse_other_data,
    starting_point,
)
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
    """An outcome says where the run is, whether it reached its end (or which signal stopped it), and its last
    metrics.
    """

    folder: Path
    finished: bool
    signal: int | None
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Job:
    """A job says what there is to train, and how.

    described: what run.json says of it. checkpoint: where it goes on from (None: from the start). begin: called when
    the folder is ready; it returns the callbacks of this kind of run. finish: evaluates what was saved. files: those of
    the kind of run that grow with it. compares: it reads the starting model to its end. started: `time.perf_counter`
    when the command began.
    """

    config: Any
    trainer: WindowTrainer
    tokenizer: Any
    described: dict[str, Any]
    checkpoint: Path | None
    begin: Callable[[ProgressCallback], Sequence[TrainerCallback]]
    finish: Callable[[], dict[str, float]]
    label: str
    quiet: bool
    started: float
    files: Sequence[Lines] = ()
    compares: bool = False

    @property
    def folder(self) -> Path:
        """Return the run's folder."""
        return Path(self.config.output_dir)

    @property
    def kind(self) -> str:
        """Return the name of the kind of run."""
        return str(self.described.get("training", "sft"))

    def seconds(self) -> float:
        """Return the seconds since the command began."""
        return time.perf_counter() - self.started


def in_folder(
    config: Any,
    *,
    free: frozenset[str],
    train: Callable[[Path, Path | None], Outcome],
    rows: Callable[[], int] | None = None,
) -> Outcome:
    """Give a run its folder to itself, and train it from the start or from a checkpoint, or find it finished.

    free: settings that may change between a checkpoint and its continuation. train: gets the folder and the checkpoint.
    rows: how many rows a step takes, where that may be split otherwise.
    """
    folder = Path(config.output_dir)
    with alone_in(folder), dated(config):
        checkpoint = starting_point(config, folder, free=free, rows=rows)
        if is_finished(config, folder, free=free, rows=rows):
            return Outcome(folder, True, None, {}, 0.0)
        return train(folder, checkpoint)


@contextmanager
def trainer_errors(command: str) -> Iterator[None]:
    """Raise as a UserError what the engine says while a trainer is made, such as that a tracker is not installed."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"trainer: {said}", mend=f"see `remask {command} --help`") from error


def carry_out(job: Job) -> Outcome:
    """Train from the start or the checkpoint, save, and evaluate. However the run ends, the record says so."""
    trainer, folder, main = job.trainer, job.folder, job.trainer.is_world_process_zero()
    job = replace(job, described={**job.described, "date": today().isoformat(timespec="seconds")})
    metrics_file = Lines(folder / "metrics.jsonl")
    keep = _checked(job, metrics_file)
    trainer.remove_callback(PrinterCallback)
    PartialState().wait_for_everyone()  # all ranks have looked at the folder before one writes into it
    if main:
        prepare_folder(job.config, folder, fresh=job.checkpoint is None)
    PartialState().wait_for_everyone()
    progress_callback, stop = ProgressCallback(job.label, enabled=not job.quiet), StopCallback()
    resumed = job.checkpoint is not None
    record = Record(folder, job.described, device=job.config.device, enabled=main, resumed=resumed)
    try:
        keep.restore(job.checkpoint)
        own = job.begin(progress_callback)
        further = (FiniteGradientCallback(), MetricsCallback(metrics_file), progress_callback, stop, keep)
        for callback in (*own, *further, SealCallback()):
            trainer.add_callback(callback)
        metrics = _trained(job, stop)
        if stop.stopped is not None and trainer.state.global_step < trainer.state.max_steps:
            record.write("stopped", seconds := job.seconds())
            return Outcome(folder, False, int(stop.stopped), metrics, seconds)
    except BaseException as error:
        cut = isinstance(error, KeyboardInterrupt)
        with suppress(UserError):  # no room for it either: the first error is the one to tell
            record.write("stopped" if cut else "failed", job.seconds())
        if cut and main:
            print(stopped_at(folder, job.kind), file=sys.stderr)
        raise
    finally:
        progress_callback.close()
    record.values["steps"] = trainer.state.global_step
    record.write("finished", job.seconds(), metrics)
    if main:
        write_card(folder, job.config, record.values)
    return Outcome(folder, True, None, metrics, job.seconds())


def _checked(job: Job, metrics_file: Lines) -> KeepCallback:
    """What keeps checkpoints whole, after the starting model and the checkpoint have been found to be the run's."""
    config, trainer, checkpoint = job.config, job.trainer, job.checkpoint
    base = None
    if trainer.is_world_process_zero() and (job.compares or config.lora.rank):
        with working("reading the starting model's weights", enabled=not job.quiet):
            base = digest_of_base(config.model)
    keep = KeepCallback(trainer, [metrics_file, *job.files], config, job.described, base)
    settle_fsdp(trainer)
    settle_ddp(trainer)
    refuse_to_lose_the_model(trainer)
    if checkpoint is not None:
        refuse_another_engine(trainer, checkpoint)
        refuse_other_data(job.described, checkpoint)
        if base is not None:
            refuse_other_base(base, checkpoint, config.model)
        keep.check(checkpoint)
    return keep


def _trained(job: Job, stop: StopCallback) -> dict[str, float]:
    """The metrics of the steps and, where all of them were taken, of the model that is saved then: before it is
    evaluated, so that nothing that happens there can lose it.
    """
    trainer, checkpoint = job.trainer, job.checkpoint
    with stop, quiet_transformers(), whole_checkpoints(trainer, job.kind):
        metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
        if stop.stopped is not None and trainer.state.global_step < trainer.state.max_steps:
            return metrics
        with whole_model(job.folder, job.kind):
            _save(job.config, trainer, job.tokenizer, job.folder)
        metrics |= job.finish()
        refuse_ruined(metrics, job.folder)
        return metrics


def _save(config: Any, trainer: Trainer, tokenizer: Any, folder: Path) -> None:
    save_whole(trainer, folder)
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(str(folder))
        if not config.lora.rank:
            copy_code(resolve_model(config.model), folder)


def refuse_ruined(metrics: dict[str, float], folder: Path) -> None:
    """Raises UserError where the model that is left gives no numbers: no gradient is checked after the last step."""
    if bad := [name for name, value in metrics.items() if name.startswith("eval_") and not math.isfinite(value)]:
        raise UserError(
            f"no finite {', '.join(bad)} after the last step: the run has diverged, and the model it left is of no use",
            where=str(folder),
            mend="start anew with a lower trainer.learning_rate (--overwrite)",
        )


def last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """Return what the last step's evaluation logged, where it was evaluated already."""
    for entry in reversed(trainer.state.log_history):
        if entry["step"] == trainer.state.global_step and any(name.startswith("eval_") for name in entry):
            return {name: value for name, value in entry.items() if name.startswith("eval_")}
    return None
