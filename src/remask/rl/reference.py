"""The reference that the KL is measured from: the base with its adapters off, or a copy of what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from remask.diffusion.predict import Network
from remask.errors import UserError
from remask.training.sharding import units_of


class Reference:
    """The starting model. It costs nothing where adapters are trained and it never changes (they are switched off);
    else it is a copy of the trained parameters, which `sync` renews, put in place of the live ones for a call. Of
    sharded parameters each process keeps a copy of its own part.
    """

    FILE = "reference.safetensors"

    def __init__(self, model: Any, *, sync_every: int = 0) -> None:
        self.sync_every = sync_every
        self.copy: dict[str, Tensor] | None = None
        if sync_every or not hasattr(model, "disable_adapter"):
            self.sync(model)

    def sync(self, model: Any) -> None:
        """Make it what the model is now."""
        self.copy = {name: _own(value).clone() for name, value in _trained(model).items()}

    def predict(self, model: Any, call: Callable[[Any], Network]) -> Network:
        """The reference as what the mathematics calls; `call` makes that of a model."""
        if self.copy is None:
            return call(model).under(model.disable_adapter)
        self.copy = _laid_like(self.copy, _trained(model))
        if units_of(model):
            return call(model).under(lambda: self._in_place(model))
        copy = self.copy
        return call(lambda *arguments, **keywords: functional_call(model, copy, arguments, keywords))

    @contextmanager
    def _in_place(self, model: nn.Module) -> Iterator[None]:
        """Its parts of the parameters in the model, and the model's kept here."""
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        assert self.copy is not None
        for name, value in _trained(model).items():
            live = _own(value)
            kept = live.clone()
            live.copy_(self.copy[name])
            self.copy[name].copy_(kept)

    def save(self, model: Any, folder: Path, *, main: bool) -> None:
        """Keep it beside a checkpoint, where it is not simply the starting model. All processes take part; the main one
        writes.
        """
        if not self.sync_every or self.copy is None:
            return
        trained = _trained(model)
        whole = {name: _gathered(value, trained[name]) for name, value in self.copy.items()}
        if main:
            save_file({name: value.contiguous().cpu() for name, value in whole.items()}, folder / self.FILE)

    def restore(self, folder: Path) -> None:
        if not self.sync_every:
            return
        if not (folder / self.FILE).exists():
            raise UserError("the checkpoint lacks its reference", where=str(folder), mend="--overwrite starts anew")
        self.copy = load_file(folder / self.FILE)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters; sharded ones as shards, which no unit has gathered."""
    for unit in units_of(model):
        unit.reshard()
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _own(value: Tensor) -> Tensor:
    """What this process holds of a parameter, in the same memory."""
    held: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return held.detach()


def _laid_like(copy: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The copy on the parameters' device (the model may have moved since it was taken), and sharded as they are."""
    laid = {}
    for name, value in copy.items():
        live = trained[name]
        if isinstance(live, DTensor) and value.shape != live.to_local().shape:
            whole = value.to(live.device, live.dtype)
            value = distribute_tensor(whole, live.device_mesh, live.placements, src_data_rank=None).to_local()
        laid[name] = value.to(live.device)
    return laid


def _gathered(value: Tensor, live: Tensor) -> Tensor:
    """The whole of a parameter's copy, where each process has its part."""
    if not isinstance(live, DTensor) or value.shape != live.to_local().shape:
        return value
    part = DTensor.from_local(
        value, live.device_mesh, live.placements, run_check=False, shape=live.shape, stride=live.stride()
    )
    return part.full_tensor()
