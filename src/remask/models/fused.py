"""A layer's norms and gate, each by one kernel on CUDA: Liger's, where that is installed and kernels are switched on
(`remask.kernels.ON`). Elsewhere the gated product keeps less for its backward pass.

transformers computes each by several passes over memory (what that takes of a step: docs/speed.md). All else of a layer
stays transformers' own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation

from remask import kernels
from remask.diffusion.precision import HALF, computed_in
from remask.models.patches import Mixin, derive

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""The parts of transformers' feed-forward module."""


@cache
def _liger() -> Any:
    """Liger's functions; None where Liger is not installed."""
    if not kernels.liger_is_here():
        return None
    from liger_kernel import ops

    return ops


def fuses(x: Tensor) -> bool:
    """Return whether Liger's kernels work on a tensor: it is in half precision, or in a run of mixed precision."""
    return kernels.serve(x) and computed_in(x) in HALF and _liger() is not None


def fuse(layers: nn.Module) -> None:
    """Make every norm and gate in the layers use the kernels where they can be used."""
    for module in list(layers.modules()):
        names = set(dict(module.named_children()))
        if hasattr(module, "variance_epsilon") and not names:
            derive("norm", module, FusedNorm)
        elif names == GATED and isinstance(module.act_fn, SiLUActivation | nn.SiLU):
            derive("gated-product", module, FusedGate)


class FusedNorm(Mixin):
    """A mixin that computes the RMS norm with Liger's kernel."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not fuses(hidden_states):
            plain: Tensor = super().forward(hidden_states)
            return plain
        norm: Any = self
        # Not in place: it would write over a gradient that others may hold.
        out: Tensor = _liger().LigerRMSNormFunction.apply(
            hidden_states, norm.weight, norm.variance_epsilon, 0.0, "llama", False
        )
        return out


class FusedGate(Mixin):
    """A mixin that computes SwiGLU with Liger's kernel. The kernel's backward pass writes over what it kept, so there
    is one for each forward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        mlp: Any = self
        product = _liger().LigerSiLUMulFunction if fuses(x) else GatedProduct
        out: Tensor = mlp.down_proj(product.apply(mlp.gate_proj(x), mlp.up_proj(x)))
        return out


class GatedProduct(torch.autograd.Function):
    """The product silu(gate)·up as a function of autograd. By itself autograd would keep silu(gate) too, which is as
    large as the inputs: here it is computed again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor) -> Tensor:
        return silu(gate) * up

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(g * up, gate), g * silu(gate)
        share = gate.sigmoid()  # written out, as that function has no gradient
        return g * up * share * (1 + gate * (1 - share)), g * silu(gate)
