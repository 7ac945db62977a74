"""LoRA's products in the precision of the layer they adapt, added onto its output.

peft multiplies in the adapter's own precision: of a layer in bfloat16 the input is copied to float32, the products are
made in it, scaled and added in passes of their own over tensors as large as the layer's output, and with a gradient the
copies are kept. Here, as under autocast, the adapter's weights are rounded for their products instead (float32 they
stay), and the second product scales and adds onto the output by itself: in place, so that who keeps the base layer's
own output (a forward hook on it, a checkpointing policy that saves products) sees it changed.

In float16 without autocast the gradients of the narrow products would underflow: that is left to peft.

Shapes: N tokens, D width in, E width out, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from remask.diffusion.precision import autocast_is_on, computed_in
from remask.models.patches import Mixin, derive


def lean(model: Any) -> Any:
    """Return the same model with lean layers: linear layers with plain adapters compute as this module says, the others
    as peft does.
    """
    for module in model.modules():
        if not isinstance(module, Linear) or type(module.base_layer) is not nn.Linear:
            continue
        for name, down in module.lora_A.items():
            up = module.lora_B[name]
            if name not in module.lora_variant and down.bias is None and up.bias is None:
                derive("adapters", module, LeanAdapter)
                derive("adapters", down, LeanDown)
                derive("adapters", up, LeanUp)
    return model


class LeanAdapter(Mixin):
    """A mixin that stands before peft's layer. A layer with variants, or a call with further arguments, is left to
    peft.
    """

    def forward(self, x: Float[Tensor, "... D"], *given: Any, **keywords: Any) -> Float[Tensor, "... E"]:
        layer: Any = self
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        plain = all(isinstance(layer.lora_A[name], LeanDown) for name in names)
        underflows = x.dtype == torch.float16 and not autocast_is_on(x.device)
        if given or keywords or layer.disable_adapters or layer.merged or underflows or not plain:
            left: Tensor = super().forward(x, *given, **keywords)
            return left
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = layer.base_layer(flat)
        for name in names:
            low = layer.lora_A[name](layer.lora_dropout[name](flat))
            out = layer.lora_B[name](low, onto=out, scale=layer.scaling[name])
        return out.view(*x.shape[:-1], out.shape[-1])


class LeanDown(Mixin):
    """A mixin before the first product's module; engines that shard or offload weights need that module to be
    called.
    """

    weight: Tensor

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N r"]:
        return linear(x, self.weight.to(computed_in(x)))


class LeanUp(Mixin):
    """A mixin before the second product's module."""

    weight: Tensor

    def forward(
        self, low: Float[Tensor, "N r"], onto: Float[Tensor, "N E"] | None = None, scale: float = 1.0
    ) -> Float[Tensor, "N E"]:
        """Return the product times the scale, added to `onto` in place, where that is given."""
        if onto is None:
            plain: Tensor = super().forward(low)
            return plain
        # What engines and backward hooks pass through functions of their own is a view that must stay as it is.
        add = onto.addmm if not torch.compiler.is_compiling() and onto._is_view() else onto.addmm_
        return add(low.to(onto.dtype), self.weight.to(onto.dtype).T, alpha=scale)
