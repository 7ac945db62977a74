"""The signal of every response token, read once and kept in one file (docs/theory.md §3).

A cache is tied to the model's weights, the tokenizer, the rows and the signal; one that does not match is an error that
names what differs. The file holds a digest of what is in it: a byte that changed would change the masks in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from remask.choices import SignalName
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit
from remask.diffusion.corruption import Canvas
from remask.diffusion.importance import probe_signal
from remask.diffusion.reader import Reader
from remask.errors import UserError, first_line
from remask.progress import progress
from remask.training.sharding import shares
from remask.training.shards import full

PART_SECONDS = 20.0
"""The seconds of reading after which a part is written: an interrupted pass loses at most what it read in this time."""


@dataclass(frozen=True)
class CacheKey:
    """A key holds hashes of all that a signal depends on."""

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


def hash_model(model: torch.nn.Module, *, adapters: bool = True) -> str:
    """Return a digest of every parameter and buffer, by name, whatever device they are on and however they are sharded;
    fresh adapters change nothing and may be left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if not adapters and "lora_" in name:
            continue
        tensor = full(tensor)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_rows(rows: Sequence[Row], fill: Fill, max_length: int) -> str:
    """Return a digest of the token ids in order and of how far they are filled."""
    return _hash(f"{fill}{max_length}".encode(), *(json.dumps([row.prompt, row.response]).encode() for row in rows))


def hash_tokenizer(tokenizer: Any) -> str:
    """Return a digest of a tokenizer."""
    return _hash(json.dumps(sorted(tokenizer.get_vocab().items())).encode(), str(tokenizer.chat_template).encode())


class SignalCache:
    """A cache holds signals [n_response] per row, in memory; `save` and `load` move them to and from one file."""

    def __init__(self, signals: list[Tensor], key: CacheKey) -> None:
        self.signals, self.key = signals, key

    def lay(self, index: Tensor, corruptible: Tensor) -> Tensor:
        """Return the signal of a batch's rows on their canvas [B, L], 0 outside the response.

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
        """Write the signals and their key to one file."""
        _write(path, self.signals, self.key)

    @classmethod
    def load(cls, path: Path, key: CacheKey) -> SignalCache:
        """Read a file of signals. Raises UserError for a file that cannot be read or belongs to another key, naming
        what differs.
        """
        return cls(_read(path, key)[0], key)


def _write(path: Path, signals: Sequence[Tensor], key: CacheKey, **further: Tensor) -> None:
    """Raises UserError where it cannot be written; nothing is left behind then."""
    lengths = torch.tensor([len(s) for s in signals])
    tensors = {"signal": torch.cat(list(signals)), "lengths": lengths, **further}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={**vars(key), "digest": _digest(tensors)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"the probe cache cannot be written ({first_line(error)})",
            where=str(path),
            mend="make room there, or name another file: --probe.cache",
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> str:
    parts = [(f"{name}{tuple(t.shape)}{t.dtype}".encode(), t.numpy().tobytes()) for name, t in sorted(tensors.items())]
    return _hash(*(part for pair in parts for part in pair))


def _read(path: Path, key: CacheKey) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The signals, and whatever further tensors the file has."""
    again = "delete it: the entropies are then read again"
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"not a probe cache ({first_line(error)})", where=str(path), mend=again) from error
    if "digest" not in found or not {"signal", "lengths"} <= tensors.keys():
        raise UserError("not a probe cache (it lacks what one has)", where=str(path), mend=again)
    if found["digest"] != _digest(tensors):
        raise UserError("was altered since it was written", where=str(path), mend=again)
    signals = list(tensors.pop("signal").split(tensors.pop("lengths").tolist()))
    stale = [name for name, value in vars(key).items() if found.get(name) != value]
    if stale:
        raise UserError(
            f"this probe cache was made for another {' and '.join(stale)}",
            where=str(path),
            mend="delete it, or give probe.cache another path",
        )
    return signals, tensors


class Parts:
    """The files beside the cache to be that hold what an unfinished pass has read; there are none where the cache has
    no path.
    """

    def __init__(self, path: Path | None, key: CacheKey, rank: int) -> None:
        self.folder = None if path is None else path.with_suffix(".parts")
        self.key, self.rank = key, rank
        self.waiting: dict[int, Tensor] = {}
        self.written = time.monotonic()

    def found(self, world: int) -> dict[int, Tensor]:
        """Return signals by row, from the files that the first rank saw. Raises UserError for those of another pass."""
        known: dict[int, Tensor] = {}
        if self.folder is None:
            return known
        names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        for name in gather_object([names])[0] if world > 1 else names:
            signals, further = _read(self.folder / name, self.key)
            known.update(zip(further["rows"].tolist(), signals, strict=True))
        return known

    def keep(self, row: int, signal: Tensor) -> None:
        """Keep a row's signal, and write the kept ones to a file once `PART_SECONDS` have passed since the last."""
        self.waiting[row] = signal
        if self.folder is not None and time.monotonic() - self.written >= PART_SECONDS:
            name = f"{self.rank:05d}-{time.time_ns()}.safetensors"
            rows = torch.tensor(list(self.waiting))
            _write(self.folder / name, list(self.waiting.values()), self.key, rows=rows)
            self.waiting, self.written = {}, time.monotonic()

    def clear(self) -> None:
        """Delete the files of the pass."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def build_cache(
    reader: Reader,
    rows: Sequence[Row],
    collator: Collator,
    mask_id: int,
    signal: SignalName,
    key: CacheKey,
    *,
    batch_size: int,
    device: torch.device,
    path: Path | None = None,
    rank: int = 0,
    world: int = 1,
    show_progress: bool = True,
) -> SignalCache:
    """Read the signal of every row in one pass that the ranks share, longest rows together. `reader` makes the reader
    of the frozen model. With a `path`, where the cache will be saved, a pass that was interrupted goes on where it
    stopped.

    A row is read on a canvas of its length, so that its signal does not depend on the other rows of the batch; where
    fill follows the batch, with one EOS of fill, which stands for all of it. Every rank takes the same number of
    forwards.
    """
    if collator.fill.kind == "batch":
        rows = [
            Row(row.prompt, [*row.response, collator.eos_id], row.where) if len(row) < collator.max_length else row
            for row in rows
        ]
        collator = replace(collator, fill=Fill("none"))
    dataset, parts = RowDataset(rows), Parts(path, key, rank)
    signals = parts.found(world)
    left = sorted((i for i in range(len(rows)) if i not in signals), key=lambda i: -len(rows[i]))
    batches = [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
    own: dict[int, Tensor] = {}
    with progress("probing", len(rows), enabled=show_progress) as tick:
        for number, (members, _) in enumerate(shares(batches, rank, world)):
            batch = collator([dataset[Visit(i, 0, 0)] for i in members])
            canvas = Canvas.of({name: value.to(device) for name, value in batch.items()})
            found = probe_signal(reader, canvas, mask_id, signal)
            for b, i in enumerate(members):
                own[i] = found[b][canvas.corruptible[b]].cpu()
                parts.keep(i, own[i])
            tick(min(len(rows), len(signals) + (number + 1) * world * batch_size))
    for each in gather_object([own]) if world > 1 else [own]:
        signals.update(each)
    cache = SignalCache([signals[i] for i in range(len(rows))], key)
    if path is not None and rank == 0:
        cache.save(path)
        parts.clear()
    return cache
