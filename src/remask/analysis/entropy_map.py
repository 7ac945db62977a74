"""Per-token entropy, β and masking rate of examples: what GIFT would look at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit
from remask.diffusion.attention import Attention
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas, importance_rate, uniform_rate
from remask.diffusion.importance import probe_signal
from remask.diffusion.noise import Noise
from remask.diffusion.objective import Objective, read_importance
from remask.diffusion.reader import reader_of


def without_fill(rows: Sequence[Row], eos_id: int) -> Collator:
    """Return a collator that leaves each row as it is, without EOS fill."""
    return Collator(Fill("none"), eos_id, max(len(row) for row in rows), seed=0)


def one_by_one(
    rows: Sequence[Row], collator: Collator, device: Any, attention: Attention
) -> Iterator[tuple[Canvas, Noise]]:
    """Yield each row's canvas and noise."""
    dataset = RowDataset(rows)
    for i in range(len(rows)):
        batch = {name: value.to(device) for name, value in collator([dataset[Visit(i, 0, 0)]]).items()}
        yield in_blocks(Canvas.of(batch), attention), Noise.of(batch)


@torch.no_grad()
def entropy_map(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    objective: Objective,
    *,
    mask_id: int,
    collator: Collator,
    time: float,
) -> list[dict[str, Any]]:
    """Return for each row its response tokens, their entropy (nats, whole response masked), β (None where the objective
    reads none), and p at `time`.

    Rows are read one by one, with the collator's fill.
    """
    examples = []
    for row, (canvas, noise) in zip(rows, one_by_one(rows, collator, model.device, attention_of(model)), strict=True):
        entropy = probe_signal(reader_of(model), canvas, mask_id, "entropy")
        signal = (
            entropy
            if objective.signal in ("entropy", "permuted_entropy")
            else probe_signal(reader_of(model), canvas, mask_id, objective.signal)
        )
        found = read_importance(objective, canvas, noise, signal)
        t = torch.full((1, 1), time, device=model.device)
        rated = objective.rate == "importance"  # LIFT's masks have the rate t too
        rate = importance_rate(t, found.ratio, canvas.corruptible) if rated else uniform_rate(t, canvas.corruptible)
        where = canvas.corruptible
        examples.append(
            {
                "prompt": tokenizer.decode(row.prompt),
                "tokens": [tokenizer.decode([token]) for token in canvas.ids[where].tolist()],
                "entropy": [round(v, 5) for v in entropy[where].tolist()],
                "beta": [round(v, 5) for v in found.beta[where].tolist()] if objective.uses_importance else None,
                "rate": [round(v, 5) for v in rate[where].tolist()],
                "time": time,
            }
        )
    return examples
