"""What a run learned to predict: right tokens by class, with half of the response revealed, before and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remask.data.canvas import Row
from remask.data.collate import RowDataset, Visit
from remask.data.token_classes import classes_of
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.halves import score_in_halves
from remask.diffusion.noise import Noise
from remask.files import as_json, from_json, write_atomically
from remask.progress import progress
from remask.training.rows import EVALUATION_SEED

if TYPE_CHECKING:
    from remask.sft.trainer import SftTrainer

NAME = "class_accuracy.json"
Counts = dict[str, list[int]]
"""The number in each row, by class."""


class ClassAccuracy:
    """Class accuracy is read from a run's model before and after it, on the same noise in every run, and on the same
    rows: `count` of them, evenly spaced among the held-out ones, or among those trained on where none are held out.

    Only the first process reads, and the weights must be whole. Nothing is read or written where the tokenizer does not
    tell which text its tokens stand for.
    """

    def __init__(self, trainer: SftTrainer, tokenizer: Any, folder: Path, *, count: int, quiet: bool = True) -> None:
        self.trainer, self.tokenizer, self.path, self.quiet = trainer, tokenizer, folder / NAME, quiet
        self.rows = spaced(trainer.eval_rows or trainer.rows, count)
        self.enabled = count > 0 and trainer.is_world_process_zero() and self._classable()

    def _classable(self) -> bool:
        try:
            classes_of(self.tokenizer, self.rows[0].response)
        except (AttributeError, NotImplementedError, KeyError, TypeError, ValueError):
            return False
        return True

    def before(self) -> None:
        """Read the model as it is now and write the file."""
        if self.enabled:
            tokens, right = self.read()
            self._write({"tokens": tokens, "before": right, "after": None})

    def after(self) -> None:
        """Read the model again and write both. What an earlier process read before training of other rows is
        left out.
        """
        try:
            found = from_json(self.path.read_text(encoding="utf-8"))
            count = len(next(iter(found["tokens"].values())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
            return  # nothing was read before
        if not self.enabled:
            return
        self.rows = spaced(self.trainer.eval_rows or self.trainer.rows, count)  # the run may have been made longer
        tokens, right = self.read()
        before = found["before"] if found["tokens"] == tokens else None
        self._write({"tokens": tokens, "before": before, "after": right})

    def _write(self, counts: dict[str, Any]) -> None:
        held_out = bool(self.trainer.eval_rows)
        write_atomically(self.path, as_json({"kind": "remask.class_accuracy", "held_out": held_out, **counts}))

    def read(self) -> tuple[Counts, Counts]:
        """Return (tokens, right ones) of each class in each row; the EOS fill is a class."""
        size = self.trainer.args.per_device_train_batch_size  # what is known to fit
        tokens: Counts = {}
        right: Counts = {}
        with progress("right tokens by class", len(self.rows), enabled=not self.quiet) as tick:
            for start in range(0, len(self.rows), size):
                members = range(start, min(start + size, len(self.rows)))
                self._count(members, tokens, right)
                tick(members.stop)
        return tokens, right

    def _count(self, members: range, tokens: Counts, right: Counts) -> None:
        """Add those of some rows."""
        trainer, dataset = self.trainer, RowDataset(self.rows)
        batch = replace(trainer.collator, seed=EVALUATION_SEED)([dataset[Visit(i, 0, i)] for i in members])
        batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
        canvas, noise = in_blocks(Canvas.of(batch), attention_of(self.trainer.model)), Noise.of(batch)
        wrong, _ = score_in_halves(trainer.reader(trainer.model).read_only(), canvas, noise.u, trainer.mask_id)
        for place, i in enumerate(members):
            errors = wrong[place][canvas.corruptible[place]].tolist()
            response = self.rows[i].response
            classes = classes_of(self.tokenizer, response, fill=len(errors) - len(response))
            for names, error in zip(classes, errors, strict=True):
                for name in names:
                    for counts, one in ((tokens, 1), (right, 1 - error)):
                        counts.setdefault(name, [0] * len(self.rows))[i] += one


def spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """Return at most `count` of the rows, evenly spaced from the first on."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)
