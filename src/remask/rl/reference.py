"""The reference that the KL is measured from: the base with its adapters off, or a copy of what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from remask.diffusion.predict import Network
from remask.errors import UserError


class Reference:
    """The starting model. It costs nothing where adapters are trained and it never changes (they are switched off);
    else it is a copy of the trained parameters, which `sync` renews, put in place of the live ones for a call.
    """

    FILE = "reference.safetensors"

    def __init__(self, model: Any, *, sync_every: int = 0) -> None:
        self.sync_every = sync_every
        self.copy: dict[str, Tensor] | None = None
        if sync_every or not hasattr(model, "disable_adapter"):
            self.sync(model)

    def sync(self, model: Any) -> None:
        """Make it what the model is now."""
        named = model.named_parameters()
        self.copy = {name: value.detach().clone() for name, value in named if value.requires_grad}

    def predict(self, model: Any, call: Callable[[Any], Network]) -> Network:
        """The reference as what the mathematics calls; `call` makes that of a model."""
        if self.copy is None:
            return call(model).under(model.disable_adapter)
        device = next(model.parameters()).device  # the model may have moved since it was copied
        copy = self.copy = {name: value.to(device) for name, value in self.copy.items()}
        return call(lambda *arguments, **keywords: functional_call(model, copy, arguments, keywords))

    def save(self, folder: Path) -> None:
        """Keep it beside a checkpoint, where it is not simply the starting model."""
        if self.sync_every and self.copy is not None:
            save_file({name: value.contiguous().cpu() for name, value in self.copy.items()}, folder / self.FILE)

    def restore(self, folder: Path) -> None:
        if not self.sync_every:
            return
        if not (folder / self.FILE).exists():
            raise UserError("the checkpoint lacks its reference", where=str(folder), mend="--overwrite starts anew")
        self.copy = load_file(folder / self.FILE)
