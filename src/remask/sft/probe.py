"""The frozen probe: β read once, or anew every few epochs, and kept (docs/theory.md §3).

With a cache Q, the law of the masks, is fixed during optimisation, as GIFT's theorem assumes, and β costs nothing after
the first pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments

from remask.config import SftConfig
from remask.errors import UserError
from remask.files import from_json, refuse_unwritable_folder, write_atomically
from remask.sft.signals import CacheKey, SignalCache, build_cache, hash_model, hash_rows, hash_tokenizer
from remask.training.sharding import whole

if TYPE_CHECKING:
    from remask.sft.trainer import SftTrainer


def frozen_probe(
    config: SftConfig, trainer: SftTrainer, tokenizer: Any, folder: Path, checkpoint: Path | None, quiet: bool
) -> ProbeRefresh | None:
    """Return the callback that gives the trainer its cache, where the probe is frozen. An existing cache is read now,
    before anything is written; else `begin` reads one.
    """
    if config.probe.policy != "frozen" or not trainer.objective.uses_probe:
        return None
    refresh = ProbeRefresh(
        trainer,
        folder / "probe",
        every=config.probe.every,
        tokenizer_hash=hash_tokenizer(tokenizer),
        quiet=quiet,
    )
    if config.probe.cache:
        refresh.start = Path(config.probe.cache)
        if not refresh.start.exists():
            refuse_unwritable_folder(refresh.start.parent)
    going = config.overwrite and refresh.start.resolve().is_relative_to(refresh.folder.resolve())
    if not refresh.restore(checkpoint) and refresh.start.exists() and not going:
        refresh.read_start(refresh.start)
    return refresh


class ProbeRefresh(TrainerCallback):
    """A callback that keeps the frozen probe's cache: from the starting model, then anew every `every` epochs from the
    current one.

    Which cache a checkpoint was trained with is written into the checkpoint, so that a resumed run uses the same.
    """

    STATE = "probe.json"

    def __init__(self, trainer: SftTrainer, folder: Path, *, every: int, tokenizer_hash: str, quiet: bool) -> None:
        self.trainer, self.folder, self.every, self.quiet = trainer, folder, every, quiet
        self.tokenizer_hash, self.epoch = tokenizer_hash, 0
        self.start = folder / "start.safetensors"

    def begin(self) -> None:
        """Read the starting model's signals, where there is no cache yet."""
        if self.trainer.cache is None:
            self.read_start(self.start)

    def _key(self, model_hash: str) -> CacheKey:
        collator, signal = self.trainer.collator, self.trainer.objective.signal
        signal = "entropy" if signal == "permuted_entropy" else signal
        data = hash_rows(self.trainer.rows, collator.fill, collator.max_length)
        return CacheKey(model_hash, self.tokenizer_hash, data, signal)

    def read_start(self, path: Path) -> None:
        """Read the starting model's signals from the file where there is one (it must match), else from the model, and
        write them.
        """
        key = self._key(hash_model(self.trainer.model, adapters=False))
        if path.exists():
            self.trainer.cache = SignalCache.load(path, key)
        else:
            self.trainer.cache = self._read(key, path)

    def restore(self, checkpoint: Path | None) -> bool:
        """Read the cache a checkpoint was trained with, where that was a refreshed one, and return whether it was."""
        if checkpoint is None or not (checkpoint / self.STATE).exists():
            return False
        state = from_json((checkpoint / self.STATE).read_text())
        if state["epoch"] == 0:
            return False
        self.epoch = state["epoch"]
        try:
            self.trainer.cache = SignalCache.load(self._path(self.epoch), self._key(state["model"]))
        except UserError as error:  # the model that it was read from is gone
            mend = "bring it back, or resume from a checkpoint of an earlier epoch"
            raise UserError(error.what, where=error.where, mend=mend) from error
        return True

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    def _read(self, key: CacheKey, path: Path) -> SignalCache:
        trainer, device = self.trainer, self.trainer.args.device
        with whole(trainer):
            return build_cache(
                trainer.reader(trainer.model).read_only(),
                trainer.rows,
                trainer.collator,
                trainer.mask_id,
                trainer.objective.signal,
                key,
                batch_size=trainer.args.per_device_eval_batch_size,
                device=device,
                path=path,
                rank=trainer.args.process_index,
                world=trainer.args.world_size,
                show_progress=not self.quiet and trainer.is_world_process_zero(),
            )

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        epoch = int((state.epoch or 0.0) + 1e-6)
        if self.every and epoch and epoch % self.every == 0 and epoch != self.epoch:
            self.trainer.cache = self._read(self._key(hash_model(self.trainer.model)), self._path(epoch))
            self.epoch = epoch

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            assert self.trainer.cache is not None
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            values = {"epoch": self.epoch, "model": self.trainer.cache.key.model}
            write_atomically(folder / self.STATE, json.dumps(values))
