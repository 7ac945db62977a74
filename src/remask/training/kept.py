"""What a checkpoint keeps beside the engine's state: what was run and logged, and the window that is being averaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remask.errors import UserError
from remask.files import from_json, write_atomically
from remask.training.begun import KEPT, read_kept
from remask.training.lines import Lines
from remask.training.window import WindowTrainer


class KeepCallback(TrainerCallback):
    """A callback that writes the run's state into each checkpoint, and restores trainer and files to what they were at
    one.
    """

    def __init__(
        self, trainer: WindowTrainer, files: Sequence[Lines], config: Any, described: dict[str, Any], base: str | None
    ) -> None:
        self.trainer, self.files = trainer, files
        self.of_run: dict[str, Any] = {
            "config": asdict(replace(config, resume=None, overwrite=False)),
            **{name: described[name] for name in ("rows_per_step", "splits_alike", "date") if name in described},
            "data": {"digest": described["data"]["digest"]},
            "base": base,
        }

    def check(self, checkpoint: Path) -> None:
        """Raises UserError where a file is not what it was at the checkpoint of the same run."""
        marks = self._marks(checkpoint)
        for file in self.files:
            if file.name in marks:
                file.check(marks[file.name])

    def restore(self, checkpoint: Path | None) -> None:
        """Restore the state of a checkpoint before training; without a checkpoint everything begins. The first process
        has the files.
        """
        if checkpoint is not None:
            self._restore_window(checkpoint)
        if self.trainer.is_world_process_zero():
            marks = self._marks(checkpoint)
            for file in self.files:
                file.go_back(marks.get(file.name))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        name = f"window-{args.process_index}-of-{args.world_size}.json"
        write_atomically(folder / name, json.dumps(self.trainer.window.state()))
        if state.is_world_process_zero:
            marks = {file.name: file.mark() for file in self.files}
            write_atomically(folder / KEPT, json.dumps({**self.of_run, "files": marks}, indent=1))

    def _marks(self, checkpoint: Path | None) -> dict[str, dict[str, Any]]:
        """A run that goes on in another folder begins its files there."""
        own = checkpoint is not None and checkpoint.parent.resolve() == Path(self.trainer.args.output_dir).resolve()
        return read_kept(checkpoint)["files"] if checkpoint is not None and own else {}

    def _restore_window(self, checkpoint: Path) -> None:
        paths = sorted(checkpoint.glob("window-*-of-*.json"), key=lambda path: int(path.name.split("-")[1]))
        wrote = paths[0].stem.rpartition("-")[2] if paths else "1"
        if len(paths) != int(wrote):
            raise UserError(
                f"the checkpoint holds what {len(paths)} processes logged; {wrote} wrote it",
                where=str(checkpoint),
                mend="resume from another checkpoint, or --overwrite starts anew",
            )
        args = self.trainer.args
        everywhere = [from_json(path.read_text()) for path in paths]
        self.trainer.window.restore(everywhere, args.process_index, args.world_size)
