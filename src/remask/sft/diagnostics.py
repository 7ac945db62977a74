"""What is read of a run for its report: how much of it, and which tokens a method masks by the first model's entropy.

The reading is bounded by a share of the training's arithmetic, counted and not timed: it is the same wherever the same
run is made, and however often it is stopped.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from remask.choices import Diagnostics
from remask.data.collate import RowDataset, Visit
from remask.diffusion.corruption import Canvas
from remask.diffusion.importance import probe_signal
from remask.progress import progress

if TYPE_CHECKING:
    from remask.sft.trainer import SftTrainer

MASKING_ROWS, CLASS_ROWS, DRAWS = 128, 64, 4
"""The numbers of rows and draws that are read where nothing bounds the reading."""
LEAST = 8
"""The least number of rows that tells something of classes of tokens."""
SHARE = 0.05
"""The share of the training's arithmetic that the reading may take."""
FREE = 3e11
"""The number of floating-point operations that takes a few seconds anywhere, and is not counted against the share."""
LARGE = 1_000_000_000
"""The number of weights above which nothing is read unless it is asked for."""


@dataclass(frozen=True)
class Extent:
    """An extent says how many rows to read: those whose masks are counted, and those whose tokens are classed; where
    none are, the reason.
    """

    masking: int
    classes: int
    left_out: str | None = field(default=None, compare=False)


def extent_of(trainer: SftTrainer, asked: Diagnostics, *, quiet: bool) -> Extent:
    """Return how much is to be read. Where `auto` leaves something out altogether, one line says so."""
    if trainer.mask_token_id is None:
        return Extent(0, 0, "they are read of masks, and this model has none")
    whole = Extent(min(MASKING_ROWS, len(trainer.rows)), min(CLASS_ROWS, len(trainer.eval_rows or trainer.rows)))
    if asked != "auto":
        return whole if asked == "on" else Extent(0, 0, "report.diagnostics is off")
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    share = _share(trainer, whole, weights)
    found = Extent(int(whole.masking * share), int(whole.classes * share))
    if weights <= LARGE and (share == 1 or found.classes >= LEAST):
        return found
    size = f"the model has {weights / 1e9:.1f} B weights"
    why = size if weights > LARGE else "they would outlast so short a training"
    if not quiet and trainer.is_world_process_zero():
        print(f"diagnostics for the report are left out: {why} (--report.diagnostics on reads them)", file=sys.stderr)
    return Extent(0, 0, why)


def _share(trainer: SftTrainer, whole: Extent, weights: int) -> float:
    """Of the whole reading, that fits its bounds, in forward passes of one row: a training step takes three, masks are
    drawn from an entropy and one pass a draw, and classes are read in two halves, before and after.
    """
    args, rows, collator = trainer.args, trainer.rows, trainer.collator
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else math.ceil(len(rows) / step) * args.num_train_epochs
    tokens = collator.max_length if collator.fill.kind == "max" else sum(map(len, rows)) / len(rows)
    allowed = max(SHARE * 3 * steps * step, FREE / (2 * weights * tokens))
    return min(1.0, allowed / (whole.masking * (1 + DRAWS) + whole.classes * 4))


def masking_by_entropy(trainer: SftTrainer, *, rows: int, draws: int = DRAWS, quiet: bool = True) -> dict[str, Any]:
    """Corrupt up to `rows` training rows `draws` times as training will, and count masked tokens by entropy decile.

    Entropies are read with the whole response masked; deciles have equal numbers of tokens.
    """
    dataset = RowDataset(trainer.rows)
    device = trainer.args.device
    entropies, masked = [], []
    reader = trainer.reader(trainer.model).read_only()
    count = min(rows, len(trainer.rows))
    with torch.no_grad(), progress("counting masks by entropy", count, enabled=not quiet) as tick:
        size = trainer.args.per_device_train_batch_size  # what is known to fit
        for start in range(0, count, size):
            members = range(start, min(start + size, count))
            for draw in range(draws):
                batch = trainer.collator([dataset[Visit(i, draw, draw * count + i)] for i in members])
                (prepared, *_) = trainer.corrupted(batch, device)
                if draw == 0:
                    canvas = Canvas.of({name: value.to(device) for name, value in batch.items()})
                    entropy = probe_signal(reader, canvas, trainer.mask_id, "entropy")[canvas.corruptible]
                entropies.append(entropy.cpu())
                masked.append(prepared.corrupted.mask[prepared.canvas.corruptible].cpu())
            tick(members.stop)
    entropy, hit = torch.cat(entropies), torch.cat(masked)
    order = entropy.argsort(stable=True)
    deciles = [
        {
            "low": entropy[part].min().item(),
            "high": entropy[part].max().item(),
            "tokens": len(part),
            "masked": int(hit[part].sum()),
        }
        for part in order.tensor_split(10)
        if len(part)
    ]
    return {"kind": "remask.masking", "rows": count, "draws": draws, "deciles": deciles}
