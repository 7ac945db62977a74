"""A while in which a model's weights do not change: then what can be computed of them once is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from remask.kernels import prepacked
from remask.memory import free_bytes
from remask.models.patches import applies, exchanged

PATCH = "prepacked"
SHARE = 0.25
"""The share of the free memory that the weights' second layout may take."""


@contextmanager
def weights_unchanged(model: nn.Module, *, at_once: bool = False) -> Iterator[None]:
    """Keep the layout that a CPU multiplies in of every linear layer's weight in bfloat16, while nothing changes them.

    Products without a gradient are as before to the last bit, and those of few rows faster (docs/speed.md). Nothing is
    kept where a second copy of the weights would take more than a quarter of the free memory. May be nested. at_once:
    for a long while, so that weights are laid out in their first product of few rows instead of their ninth.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()  # `diffusion.head` looks its weight up itself
    with ExitStack() as stack:
        for layer in _layers(model):
            prepacked.hold(layer.weight, at_once=at_once)
            stack.callback(prepacked.let_go, layer.weight)
            if layer is not head and "forward" not in vars(layer):
                stack.enter_context(exchanged(PATCH, layer, "forward", partial(_forward, layer)))
        yield


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return prepacked.product(x, layer.weight, layer.bias)


def _layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers whose weights are worth it; none where their second copy is too large."""
    found = [module for module in model.modules() if type(module) is nn.Linear and prepacked.fits(module.weight)]
    weights = {id(layer.weight): layer.weight for layer in found}
    size = sum(weight.nbytes for weight in weights.values())
    if not applies(PATCH) or size > SHARE * free_bytes(torch.device("cpu")):
        return []
    return found
