"""The frozen probe's cache: the signal of every response token, read once and kept (methods §2, probe policy).

With a cache Q, the law of the masks, is fixed during optimisation, as GIFT's theorem assumes, and β costs nothing after
the first pass. A cache is tied to the model's weights, the tokenizer, the rows and the signal; one that does not match
is an error that names what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit, canvas_of
from remask.diffusion.importance import Predict, SignalName, probe_signal
from remask.errors import UserError
from remask.progress import progress


@dataclass(frozen=True)
class CacheKey:
    """Hashes of all that a signal depends on."""

    model: str
    tokenizer: str
    data: str
    signal: str


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_model(model: torch.nn.Module) -> str:
    """Of every parameter and buffer, by name, whatever device they are on."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_rows(rows: Sequence[Row], fill: Fill, max_length: int) -> str:
    """Of the token ids in order and of how far they are filled."""
    return _hash(f"{fill}{max_length}".encode(), *(json.dumps([row.prompt, row.response]).encode() for row in rows))


def hash_tokenizer(tokenizer: Any) -> str:
    return _hash(json.dumps(sorted(tokenizer.get_vocab().items())).encode(), str(tokenizer.chat_template).encode())


class SignalCache:
    """Signals [n_response] per row, in memory; `save` and `load` move them to and from one file."""

    def __init__(self, signals: list[Tensor], key: CacheKey) -> None:
        self.signals, self.key = signals, key

    def lay(self, index: Tensor, corruptible: Tensor) -> Tensor:
        """The signal of a batch's rows on their canvas [B, L], 0 outside the response.

        Fill beyond what the probe saw repeats the row's last value, which is that of an EOS of fill.
        """
        out = torch.zeros(corruptible.shape, dtype=torch.float32, device=corruptible.device)
        for b, row in enumerate(index.tolist()):
            places = corruptible[b].nonzero()[:, 0]
            stored = self.signals[row].to(out.device)
            if len(places) > len(stored):
                stored = torch.cat([stored, stored[-1:].expand(len(places) - len(stored))])
            out[b, places] = stored[: len(places)]
        return out

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lengths = torch.tensor([len(s) for s in self.signals])
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"signal": torch.cat(self.signals), "lengths": lengths}, temporary, metadata=vars(self.key))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, key: CacheKey) -> SignalCache:
        """Raises UserError for a file that cannot be read or belongs to something else, naming what differs."""
        try:
            with safe_open(path, "pt") as file:
                found = file.metadata() or {}
                signal, lengths = file.get_tensor("signal"), file.get_tensor("lengths")
        except (OSError, SafetensorError) as error:
            raise UserError(f"not a probe cache ({error})", where=str(path), mend="delete it to read β anew") from error
        stale = [name for name, value in vars(key).items() if found.get(name) != value]
        if stale:
            raise UserError(
                f"this probe cache was made for another {' and '.join(stale)}",
                where=str(path),
                mend="delete it, or give probe.cache another path",
            )
        return cls(list(signal.split(lengths.tolist())), key)


def build_cache(
    predict: Predict,
    rows: Sequence[Row],
    collator: Collator,
    mask_id: int,
    signal: SignalName,
    key: CacheKey,
    *,
    batch_size: int,
    device: torch.device,
    show_progress: bool = True,
) -> SignalCache:
    """Read the signal of every row in one pass, longest rows together. `predict` runs the model to be frozen.

    A row is read on its own canvas, so that its signal depends on no batch mate; where fill follows the batch, with one
    EOS of fill, which stands for all of it.
    """
    if collator.fill.kind == "batch":
        rows = [
            Row(row.prompt, [*row.response, collator.eos_id], row.where) if len(row) < collator.max_length else row
            for row in rows
        ]
        collator = replace(collator, fill=Fill("none"))
    dataset = RowDataset(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    signals: list[Tensor] = [torch.zeros(0)] * len(rows)
    with progress("probing", len(rows), enabled=show_progress) as tick:
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            batch = collator([dataset[Visit(i, 0, 0)] for i in members])
            canvas = canvas_of({name: value.to(device) for name, value in batch.items()})
            laid = probe_signal(predict, canvas, mask_id, signal)
            for b, i in enumerate(members):
                signals[i] = laid[b][canvas.corruptible[b]].cpu()
            tick(start + len(members))
    return SignalCache(signals, key)
