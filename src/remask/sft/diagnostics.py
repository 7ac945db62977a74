"""Which tokens a method masks: the masked fraction by decile of the starting model's entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from remask.data.collate import RowDataset, Visit, canvas_of
from remask.diffusion.importance import probe_signal

if TYPE_CHECKING:
    from remask.sft.trainer import SftTrainer


def masking_by_entropy(trainer: SftTrainer, *, rows: int = 128, draws: int = 4) -> dict[str, Any]:
    """Corrupt up to `rows` training rows `draws` times as training will, and count masked tokens by entropy decile.

    Entropies are read with the whole response masked; deciles have equal numbers of tokens.
    """
    dataset = RowDataset(trainer.rows)
    device = trainer.args.device
    entropies, masked = [], []
    predict = trainer.predict(trainer.model).read_only()
    count = min(rows, len(trainer.rows))
    with torch.no_grad():
        size = trainer.args.per_device_train_batch_size  # what is known to fit
        for start in range(0, count, size):
            members = range(start, min(start + size, count))
            for draw in range(draws):
                batch = trainer.collator([dataset[Visit(i, draw, draw * count + i)] for i in members])
                prepared = trainer.prepare(batch, device)
                if draw == 0:
                    canvas = canvas_of({name: value.to(device) for name, value in batch.items()})
                    entropy = probe_signal(predict, canvas, trainer.mask_id, "entropy")[canvas.corruptible]
                entropies.append(entropy.cpu())
                masked.append(prepared.corrupted.mask[prepared.canvas.corruptible].cpu())
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
