"""What a run writes into its folder about itself: its config, and `run.json`."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.environment import command, hardware, versions
from remask.files import as_json, write_atomically
from remask.models.load import pick_device
from remask.training.begun import CONFIG, RECORD, recorded
from remask.training.card import NAME as CARD
from remask.training.checkpoints import checkpoints


def prepare_folder(config: Any, folder: Path, *, fresh: bool) -> None:
    """Create the run's folder and write the config. A run that begins with `overwrite` first deletes what an earlier
    one left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fresh and config.overwrite:
        for old in checkpoints(folder):
            shutil.rmtree(old)
        shutil.rmtree(folder / "probe", ignore_errors=True)
        for old in folder.glob("runs/*/events.out.tfevents*"):  # tensorboard's curves, and nothing else of that name
            old.unlink()
            with suppress(OSError):
                old.parent.rmdir()
        for name in WRITTEN:
            for old in folder.glob(name):
                old.unlink()
    write_atomically(folder / CONFIG, configs.sealed(configs.dump(replace(config, resume=None, overwrite=False))))


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
    CARD,
)
"""The files that a run leaves in its folder and that must not be taken for the next run's: an old adapter would be
loaded instead of the new weights."""


class Record:
    """A record is the file `run.json`: what was run, on what, and how it ended. `described` is what its kind of run
    says of itself.
    """

    def __init__(
        self, folder: Path, described: dict[str, Any], *, device: str, enabled: bool, resumed: bool = False
    ) -> None:
        self.folder, self.enabled = folder, enabled
        self.before = float(recorded(folder).get("seconds", 0.0)) if resumed else 0.0
        self.values: dict[str, Any] = {
            "kind": "remask.run",
            **described,
            "versions": versions(),
            "hardware": hardware(pick_device(device)),
            "command": command(),
        }
        self.write("running", 0.0)

    def write(self, status: str, seconds: float, metrics: dict[str, float] | None = None) -> None:
        """Write the record with a status and further values."""
        self.values |= {"status": status, "seconds": round(self.before + seconds, 2), "metrics": metrics or {}}
        if self.enabled:
            write_atomically(self.folder / RECORD, as_json(self.values, indent=1))
