"""Tell one set of weights from another without reading all of it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

READ = 64
"""The values of each tensor that are read, spread over it."""


@torch.no_grad()
def fingerprint(model: Any, adapter: str | None = "default") -> str:
    """Return a fingerprint of a model's weights: of every tensor its name, shape, precision and some of its values.

    Any training step changes some of the values that are read, as it changes all of them. adapter: peft's name of the
    adapter that is in use (None: none is); tensors of other adapters are not read. A model has the same fingerprint
    whether peft wraps it or not.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(named(model, adapter).items()):
        flat = tensor.detach().reshape(-1)
        some = flat[spread(len(flat)).to(flat.device)]
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(some.float().cpu().numpy().tobytes())
    return found.hexdigest()


def spread(length: int) -> Tensor:
    """Return the numbers of the values that are read of so many, the first and the last among them."""
    count = min(READ, length)
    return torch.arange(count) * (length - 1) // max(1, count - 1)


def named(model: Any, adapter: str | None = "default") -> dict[str, Tensor]:
    """Return the tensors that make a model what it is, by names that do not depend on how peft wraps it."""
    kept = {}
    for name, tensor in model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".lora_" in plain:
            if adapter is None or f".{adapter}." not in plain:
                continue
            plain = plain.replace(f".{adapter}.", ".")
        kept[plain] = tensor
    return kept


def changing(model: Any) -> dict[str, Tensor]:
    """Return copies, in the processor's memory, of the tensors that training changes: an adapter's where the model has
    one, or all. Their names are those of `named`.
    """
    tensors = named(model)
    adapter = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in (adapter or tensors).items()}
