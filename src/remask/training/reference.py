"""The reference that the KL is measured from: the base with its adapters off, or a copy of what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from transformers import Trainer

from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.training.shards import cut, free_gathered, joined, part


class Reference:
    """A reference is the starting model. It costs nothing where adapters are trained and it never changes (they are
    switched off); else it is a copy of the trained parameters, which `sync` renews, put in place of the live ones for a
    call. Of sharded parameters each process keeps a copy of its part.
    """

    FILE = "reference.safetensors"

    def __init__(self, model: Any, *, sync_every: int = 0) -> None:
        self.sync_every = sync_every
        self.copy: dict[str, Tensor] | None = None
        if sync_every or not hasattr(model, "disable_adapter"):
            self.copy = _parts(_trained(model))

    @classmethod
    def now(cls, trainer: Trainer) -> Reference:
        """Return the model as it is now: a copy of what is trained, whatever is trained."""
        free_gathered(trainer)
        return cls(trainer.model, sync_every=1)

    def sync(self, trainer: Trainer) -> None:
        """Make the reference what the model is now."""
        free_gathered(trainer)
        self.copy = _parts(_trained(trainer.model))

    def reader(self, trainer: Trainer, call: Callable[[Any], ModelReader]) -> ModelReader:
        """Return the reference as a reader; `call` makes a reader of a model."""
        model: Any = trainer.model
        if self.copy is None:
            return call(model).under(model.disable_adapter)
        sharded, trained = free_gathered(trainer), _trained(model)
        self.copy = {name: _laid_like(value, trained[name]) for name, value in self.copy.items()}
        if sharded:
            return call(model).under(lambda: self._in_place(trainer))
        copy = self.copy
        return call(lambda *arguments, **keywords: functional_call(model, copy, arguments, keywords))

    @contextmanager
    def _in_place(self, trainer: Trainer) -> Iterator[None]:
        """Its parts of the parameters in the model, and the model's kept here."""
        self._exchange(trainer)
        try:
            yield
        finally:
            self._exchange(trainer)

    @torch.no_grad()
    def _exchange(self, trainer: Trainer) -> None:
        assert self.copy is not None
        free_gathered(trainer)
        for name, value in _trained(trainer.model).items():
            live = part(value)
            kept = live.clone()
            live.copy_(self.copy[name])
            self.copy[name].copy_(kept)

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Save the reference beside a checkpoint, where it is not simply the starting model. All processes take part;
        the main one writes.
        """
        if not self.sync_every or self.copy is None:
            return
        trained = _trained(trainer.model)
        whole = {name: joined(_laid_like(value, trained[name]), trained[name]) for name, value in self.copy.items()}
        if trainer.is_world_process_zero():
            save_file({name: value.contiguous().cpu() for name, value in whole.items()}, folder / self.FILE)

    def restore(self, folder: Path) -> None:
        """Load the reference that a checkpoint keeps."""
        if not self.sync_every:
            return
        if not (folder / self.FILE).exists():
            raise UserError("the checkpoint lacks its reference", where=str(folder), mend="--overwrite starts anew")
        self.copy = load_file(folder / self.FILE)


def _trained(model: Any) -> dict[str, Tensor]:
    """By the names they have where FSDP does not wrap layers for activation checkpointing."""
    named = ((name.replace("_checkpoint_wrapped_module.", ""), value) for name, value in model.named_parameters())
    return {name: value for name, value in named if value.requires_grad}


def _parts(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part(value).clone() for name, value in trained.items()}


def _laid_like(value: Tensor, live: Tensor) -> Tensor:
    """Its copy as the parameter is now: the model may have been moved, sharded or rounded since it was taken."""
    own = part(live)
    return (value if value.shape == own.shape else cut(value, live)).to(own)
