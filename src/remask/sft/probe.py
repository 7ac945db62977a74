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
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from remask.config import SftConfig
from remask.data.canvas import Fill, Row
from remask.data.collate import Collator, RowDataset, Visit, canvas_of
from remask.diffusion.importance import SignalName, probe_signal
from remask.diffusion.predict import Predict
from remask.errors import UserError
from remask.files import write_atomically
from remask.progress import progress

if TYPE_CHECKING:
    from remask.sft.trainer import SftTrainer


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


def hash_model(model: torch.nn.Module, *, adapters: bool = True) -> str:
    """Of every parameter and buffer, by name, whatever device they are on; fresh adapters change nothing and may be
    left out.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not adapters and "lora_" in name:
            continue
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


def frozen_probe(
    config: SftConfig, trainer: SftTrainer, tokenizer: Any, folder: Path, checkpoint: Path | None, quiet: bool
) -> list[TrainerCallback]:
    """Give the trainer its cache where the probe is frozen; the callback refreshes it."""
    if config.probe.policy != "frozen" or not trainer.objective.uses_probe:
        return []
    refresh = ProbeRefresh(
        trainer,
        folder / "probe",
        every=config.probe.every,
        tokenizer_hash=hash_tokenizer(tokenizer),
        quiet=quiet,
    )
    start = Path(config.probe.cache) if config.probe.cache else folder / "probe" / "start.safetensors"
    if not refresh.restore(checkpoint):
        refresh.read_start(start)
    return [refresh]


class ProbeRefresh(TrainerCallback):
    """Keeps the frozen probe's cache: from the starting model, then anew every `every` epochs from the current one.

    Which cache a checkpoint was trained with is written into the checkpoint, so that a resumed run uses the same.
    """

    STATE = "probe.json"

    def __init__(self, trainer: SftTrainer, folder: Path, *, every: int, tokenizer_hash: str, quiet: bool) -> None:
        self.trainer, self.folder, self.every, self.quiet = trainer, folder, every, quiet
        self.tokenizer_hash, self.epoch = tokenizer_hash, 0

    def _key(self, model_hash: str) -> CacheKey:
        collator, signal = self.trainer.collator, self.trainer.objective.signal
        signal = "entropy" if signal == "permuted_entropy" else signal
        data = hash_rows(self.trainer.rows, collator.fill, collator.max_length)
        return CacheKey(model_hash, self.tokenizer_hash, data, signal)

    def read_start(self, path: Path) -> None:
        """The starting model's signals: from the file where there is one (it must match), else read and written."""
        key = self._key(hash_model(self.trainer.model, adapters=False))
        if path.exists():
            self.trainer.cache = SignalCache.load(path, key)
        else:
            self.trainer.cache = self._read(key)
            if self.trainer.is_world_process_zero():
                self.trainer.cache.save(path)

    def restore(self, checkpoint: Path | None) -> bool:
        """The cache a checkpoint was trained with, where that was a refreshed one."""
        if checkpoint is None or not (checkpoint / self.STATE).exists():
            return False
        state = json.loads((checkpoint / self.STATE).read_text())
        if state["epoch"] == 0:
            return False
        self.epoch = state["epoch"]
        self.trainer.cache = SignalCache.load(self._path(self.epoch), self._key(state["model"]))
        return True

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    def _read(self, key: CacheKey) -> SignalCache:
        trainer = self.trainer
        return build_cache(
            trainer.predict(trainer.model).read_only(),
            trainer.rows,
            trainer.collator,
            trainer.mask_id,
            trainer.objective.signal,
            key,
            batch_size=trainer.args.per_device_eval_batch_size,
            device=trainer.args.device,
            show_progress=not self.quiet and trainer.is_world_process_zero(),
        )

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        epoch = int((state.epoch or 0.0) + 1e-6)
        if self.every and epoch and epoch % self.every == 0 and epoch != self.epoch:
            self.trainer.cache = self._read(self._key(hash_model(self.trainer.model)))
            self.epoch = epoch
            if self.trainer.is_world_process_zero():
                self.trainer.cache.save(self._path(epoch))

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            assert self.trainer.cache is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            values = {"epoch": self.epoch, "model": self.trainer.cache.key.model}
            write_atomically(folder / self.STATE, json.dumps(values))
