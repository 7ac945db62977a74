"""Quantised layers as a plan counts them: what bitsandbytes stores of a frozen weight, and what a step makes of it.

4 bits (nf4): two weights a byte, and a float32 scale for each block of 64 weights, 4.5 bits a weight in all. With
double quantisation (QLoRA, arXiv 2305.14314) the scales are bytes, with a float32 of their own for each 256 of them:
4 + 8/64 + 32/(64·256) = 4.127 bits. 8 bits (LLM.int8(), arXiv 2208.07339): a byte a weight, and a float32 scale for
each row.

Shapes: N tokens, D width in, E width out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from remask.choices import Quantization
from remask.models.patches import Mixin, derive

BLOCK = 64
"""The number of weights that share a scale in 4 bits."""
GROUP = 256
"""The number of scales that share a scale of scales."""
TABLES = {"4bit": 4 * 16, "4bit-double": 4 * (16 + 256 + 1), "8bit": 0}
"""The bytes of the values that codes stand for, which every layer keeps (and the scales' mean)."""


def stored_bytes(weights: int, outputs: int, quantization: Quantization) -> int:
    """Return the bytes of one layer's weights: codes, scales and tables."""
    if quantization == "8bit":
        return weights + 4 * outputs
    blocks = -(-weights // BLOCK)
    scales = 4 * blocks if quantization == "4bit" else blocks + 4 * -(-blocks // GROUP)
    return -(-weights // 2) + scales + TABLES[quantization]


def quantise(model: Any, quantization: Quantization) -> Any:
    """Return the same model, with no contents, as training on quantised weights has it: all linear layers but the head
    are quantised and compute in the model's precision, and all else is float32 (peft's
    `prepare_model_for_kbit_training`).
    """
    head, kind = model.get_output_embeddings(), PlannedInt8 if quantization == "8bit" else PlannedNF4
    packed: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            derive("quantised-plan", module, kind)
            planned: Any = module
            planned.quantization = quantization
            packed.add(id(module.weight))
    for parameter in model.parameters():
        if id(parameter) not in packed:
            parameter.data = parameter.data.float()
    return model.requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights, as they are stored."""
    packed = {
        id(module.weight): stored_bytes(module.weight.numel(), module.out_features, module.quantization)
        for module in model.modules()
        if isinstance(module, PlannedNF4 | PlannedInt8)
    }
    return sum(packed.get(id(weight), weight.nbytes) for weight in model.parameters())


class PlannedNF4(Mixin):
    """A mixin before a linear layer. The fake weight it computes with has the size of the dequantised one."""

    weight: Tensor
    bias: Tensor | None
    out_features: int
    quantization: Quantization

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Dequantised.apply(x.to(self.weight.dtype), self.weight)
        return (out if self.bias is None else out + self.bias.to(out.dtype)).to(x.dtype)


class PlannedInt8(Mixin):
    """A mixin before a linear layer whose weight is kept in 8 bits."""

    weight: Tensor
    bias: Tensor | None
    out_features: int
    quantization: Quantization

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Integers.apply(x, self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Dequantised(torch.autograd.Function):
    """x [… D] times W [E, D], which is made anew from its codes in both passes; x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, torch.empty_like(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] @ torch.empty_like(ctx.weight), None


class _Integers(torch.autograd.Function):
    """x [… D] times W [E, D], of both as integers; backwards W is dequantised. bitsandbytes keeps x, which the gradient
    of a frozen W does not need.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight, ctx.x = weight, x
        codes = x.to(torch.float16).to(torch.int8)
        return codes.new_empty((*x.shape[:-1], len(weight)), dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] @ torch.empty_like(ctx.weight, dtype=ctx.x.dtype), None
