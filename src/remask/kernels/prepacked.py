"""Products with weights that stay as they are for a while, on a CPU: their weights are laid out once.

oneDNN, which multiplies in bfloat16 on a CPU, lays a weight out anew in every product: with few rows that takes up to
half of its time. Here a weight that is held (`hold`) is laid out in its ninth product of few rows and kept, as
torch.compile does where it freezes weights. A product is the same to the last bit: in the product in which a weight is
laid out both are computed, and where they differ the plain one is used from then on.

Shapes: D width in, E width out.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

FEW = 128
"""The most rows of a product that gains by it (docs/speed.md)."""
AFTER = 8
"""Plain products of few rows before a weight is laid out, which takes as long as 4 to 20 of them gain by it."""


class Held:
    """A weight that is held: how often it was multiplied with, and its layout once there is one."""

    def __init__(self, weight: Float[Tensor, "E D"]) -> None:
        self.weight, self.times, self.after = weight, 0, AFTER
        self.forget()

    def forget(self) -> None:
        """Begin anew, with the weight as it is now."""
        self.version, self.products = self._counted(), 0
        self.packed: Tensor | None = None
        self.differs = False

    def _counted(self) -> int:
        """The changes of the weight that PyTorch has counted."""
        return self.weight._version

    def product(self, x: Float[Tensor, "... D"], bias: Float[Tensor, "E"] | None) -> Float[Tensor, "... E"]:
        """Return x·weightᵀ + bias in bfloat16."""
        if self._counted() != self.version:
            self.forget()
        if x.numel() > FEW * x.shape[-1]:
            return linear(x, self.weight, bias)
        if self.packed is not None:
            return _multiplied(x, self.packed, bias)
        plain = linear(x, self.weight, bias)
        self.products += 1
        if self.products > self.after and not self.differs and x.numel():
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
            self.differs = not torch.equal(_multiplied(x, packed, bias), plain)
            self.packed = None if self.differs else packed
        return plain


_held: dict[int, Held] = {}
_lock = threading.Lock()


def fits(weight: Any) -> bool:
    """Return whether holding a weight can gain anything: it is in bfloat16, on a CPU that multiplies in it."""
    return (
        type(weight) in (Tensor, torch.nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.dim() == 2
        and weight.is_contiguous()
        and not weight.is_inference()
        and _here()
    )


@cache
def _here() -> bool:
    """Whether this PyTorch, on this CPU, has oneDNN's products in bfloat16 with weights laid out before."""
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(ops, name) for name in names)
        and bool(ops._is_mkldnn_bf16_supported())
    )


def hold(weight: Tensor, *, at_once: bool = False) -> None:
    """Let products with this weight keep its layout until `let_go` was called as often. It must not change meanwhile
    but by operations that PyTorch counts (`.data` is not), which make it be laid out anew. at_once: do not wait for the
    ninth product.
    """
    with _lock:
        held = _held.setdefault(id(weight), Held(weight))
        held.times += 1
        if at_once:
            held.after = 0


def let_go(weight: Tensor) -> None:
    """Take back one `hold` of a weight; after the last one its layout is gone."""
    with _lock:
        held = _held.get(id(weight))
        if held is not None:
            held.times -= 1
            if not held.times:
                del _held[id(weight)]


def held(weight: Tensor) -> Held | None:
    """Return what is kept of a weight that products without a gradient may use now; None where there is nothing."""
    if not _held or torch.is_grad_enabled() or not torch.backends.mkldnn.enabled:
        return None
    return _held.get(id(weight))


def product(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, "E"] | None = None
) -> Float[Tensor, "... E"]:
    """Return x·weightᵀ + bias as `torch.nn.functional.linear` does, from the kept layout where there is one."""
    kept = held(weight)
    if kept is None or x.dtype != weight.dtype or torch.compiler.is_compiling():
        return linear(x, weight, bias)
    return kept.product(x, bias)


def _multiplied(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return found
