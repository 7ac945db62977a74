"""Saving that fails, mostly for want of room: nothing half-written stays, and what there is to go on from is named."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformers import Trainer

from remask.errors import UserError, first_line, shortened
from remask.faults import is_unwritable
from remask.training.checkpoints import MANIFEST, checkpoints, step_of

IN_THE_WAY = tuple(os.strerror(number) for number in (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM))
"""The errors of the system where freeing room on the disk would not help."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.safetensors", "adapter_model.bin")


@contextmanager
def whole_checkpoints(trainer: Trainer, command: str) -> Iterator[None]:
    """Delete an incomplete checkpoint if training ends in an error while it is being written.

    Raises UserError where that error is that it cannot be written.
    """
    try:
        yield
    except BaseException as error:
        half = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if not half.is_dir() or (half / MANIFEST).exists():
            raise
        if trainer.is_world_process_zero():
            shutil.rmtree(half, ignore_errors=True)
        if not _is_of(error, half):
            raise
        raise _unsaved(error, half, command) from error


@contextmanager
def whole_model(folder: Path, command: str) -> Iterator[None]:
    """Delete an incomplete model in the same way, where a run ends while it is being saved."""
    try:
        yield
    except Exception as error:
        if not is_unwritable(error):
            raise
        for path in (path for name in WEIGHTS for path in folder.glob(name)):
            with suppress(OSError):
                path.unlink()
        raise _unsaved(error, folder, command) from error


def go_on_with(command: str, folder: Path) -> str:
    """Return the command that continues a run."""
    return f"remask {command} --config {folder}/config.yaml --resume auto"


def stopped_at(run: Path, command: str) -> str:
    """Return a message on what there is of a run that was stopped in the middle of a step."""
    newest = _newest(run)
    if newest is None:
        return "stopped at once; no checkpoint was written yet"
    return f"stopped at once; the newest checkpoint is {newest}. Go on with: {go_on_with(command, run)}"


def _newest(run: Path) -> Path | None:
    return next((path for path in reversed(checkpoints(run)) if (path / MANIFEST).exists()), None)


def _is_of(error: BaseException, folder: Path) -> bool:
    """Whether an error says that something in the folder cannot be written."""
    return is_unwritable(error) or (isinstance(error, UserError) and str(error.where).startswith(str(folder)))


def _unsaved(error: BaseException, what: Path, command: str) -> UserError:
    run = what if step_of(what) < 0 else what.parent
    free = shutil.disk_usage(run).free >> 20
    newest = _newest(run)
    cause = _cause(error)
    taken = any(text in cause for text in IN_THE_WAY)
    room = "clear what stands there in its way" if taken else f"make room there ({free} MiB are free)"
    if newest is not None:
        mend = f"{room} and go on from {newest}: {go_on_with(command, run)}"
    else:
        mend = f"{room} and start anew with --overwrite: there is no checkpoint before it"
    return UserError(f"could not be written ({cause})", where=str(what), mend=mend)


def _cause(error: BaseException) -> str:
    """What the system said, where that was what began it."""
    chain, link = [error], error
    while (before := link.__cause__ or link.__context__) is not None:
        chain.append(link := before)
    said = next((one.strerror for one in chain if isinstance(one, OSError) and one.strerror), None)
    return said or shortened(first_line(error))
