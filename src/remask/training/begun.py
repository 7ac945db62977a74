"""What a run was begun with, kept in its folder and in every checkpoint, whose manifest vouches for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.chat_template import on_date
from remask.errors import UserError
from remask.files import from_json
from remask.training.checkpoints import find

CONFIG, RECORD, KEPT = "config.yaml", "run.json", "remask_run.json"
STATUSES = ("running", "finished", "stopped", "failed")


@dataclass(frozen=True)
class Begun:
    """A begun run has a config, and what follows from it: the rows of an optimiser step, whether it matters how they
    are split (None: its kind does not say), and the data's digest. `folder` is the run's.
    """

    folder: Path
    config: Any
    rows_per_step: int | None = None
    splits_alike: bool | None = None
    data: str | None = None

    @classmethod
    def of_folder(cls, folder: Path, kind: type) -> Begun:
        """Read the run of a folder. Raises UserError for a file of the run's that is not what the run wrote."""
        check_config(folder)
        return cls._made(folder, configs.load(kind, folder / CONFIG), recorded(folder))

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, kind: type) -> Begun:
        """Read the run of a checkpoint. Raises UserError for a checkpoint that does not say it: one of another program,
        or a part of one.
        """
        kept = read_kept(checkpoint)
        config: Any = configs.from_dict(kind, kept["config"], where=str(checkpoint / KEPT))
        return cls._made(checkpoint.parent, config, kept)

    @classmethod
    def _made(cls, folder: Path, config: Any, said: dict[str, Any]) -> Begun:
        rows, alike = said.get("rows_per_step"), said.get("splits_alike")
        return cls(folder, config, rows, alike, said.get("data", {}).get("digest"))


@contextmanager
def dated(config: Any) -> Iterator[None]:
    """Make chat templates write the date on which the run began, also where it is resumed on another day."""
    date = datetime.now()
    if config.resume:
        with suppress(UserError, KeyError, ValueError, TypeError):  # what is wrong with it is said when it is resumed
            checkpoint = find(Path(config.output_dir), config.resume)
            date = datetime.fromisoformat(read_kept(checkpoint)["date"]) if checkpoint else date
    with on_date(date):
        yield


def read_kept(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint keeps of its run. Raises UserError where it keeps nothing."""
    try:
        kept: dict[str, Any] = from_json((checkpoint / KEPT).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"no {KEPT} says how it was trained",
            where=str(checkpoint),
            mend="train from its model instead: give it as --model",
        ) from error
    return kept


def check_config(folder: Path) -> None:
    """Raises UserError where the folder has a `config.yaml` that is not what the run wrote."""
    if (folder / CONFIG).exists():
        configs.refuse_altered(folder / CONFIG, must=True)


def recorded(folder: Path) -> dict[str, Any]:
    """Return the folder's run.json; empty where there is none. Raises UserError for one that is no run's record."""
    path = folder / RECORD
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        values = from_json(content)
        whole = values["status"] in STATUSES and math.isfinite(values["seconds"]) and isinstance(values["data"], dict)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(
            "is not the record of a run",
            where=str(path),
            mend="bring it back, or delete it: checkpoints hold what a run needs to go on",
        )
    return dict(values)
