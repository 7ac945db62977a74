"""All that Remask changes in objects of other libraries: what, why, and how to leave each as it was.

`PATCHES` is the list. Classes and methods of transformers, peft and torch are changed by the functions below only (a
test looks for other ways); three entries of `training/sharding.py` change the state of an engine by its own methods.
`REMASK_UNPATCHED=last-layer,adapters` leaves those alone that it names, `REMASK_UNPATCHED=all` everything that can be
left alone. It is read when a model is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from remask.errors import UserError

SWITCH = "REMASK_UNPATCHED"


@dataclass(frozen=True)
class Patch:
    """A patch is a change to an object of a library. where: the module that makes it. what: which object is changed,
    and how. why: what it is for. needed: what could not run without it, for a patch that `REMASK_UNPATCHED` cannot
    switch off.
    """

    where: str
    what: str
    why: str
    needed: str | None = None


PATCHES = {
    "last-layer": Patch(
        "models/last_layer.py",
        "a causal model's last layer (transformers) becomes a NarrowLayer of its class",
        "its feed-forward part is computed only for tokens whose outputs are asked for",
    ),
    "norm": Patch(
        "models/fused.py",
        "RMS norms (transformers) become FusedNorms",
        "one kernel of Liger's instead of several passes over memory, with REMASK_KERNELS=1 on CUDA",
    ),
    "gated-product": Patch(
        "models/fused.py",
        "SwiGLU feed-forward modules (transformers) become FusedGates",
        "their product keeps two tensors for the backward pass instead of three, or is one kernel of Liger's",
    ),
    "adapters": Patch(
        "models/adapters.py",
        "plain LoRA layers (peft) and their two linear modules become LeanAdapter, LeanDown and LeanUp",
        "adapters are multiplied in the precision of the layer they adapt, and added onto its output",
    ),
    "prepacked": Patch(
        "models/unchanged.py",
        "the forward method of linear layers (torch) in bfloat16 on a CPU is exchanged while weights do not change",
        "the layout that oneDNN multiplies in is kept from product to product",
    ),
    "sharded-head": Patch(
        "models/sharded_head.py",
        "the forward method of a head sharded by FSDP2 or ZeRO-3 is exchanged during a pass for chosen tokens",
        "losses are formed a chunk at a time while its weight is whole, without all logits",
    ),
    "adapter-saving": Patch(
        "training/model.py",
        "save_pretrained and create_or_update_model_card of a model with adapters (peft) are exchanged",
        "saving asks no hub about the base's vocabulary, and leaves the model card to the run",
    ),
    "fsdp-order": Patch(
        "training/sharding.py",
        "the order of forward passes that FSDP2 (torch) remembers is forgotten after passes without a backward one",
        "the next backward pass would gather weights in an order that is not every process's",
        needed="reinforcement learning with weights sharded by FSDP2",
    ),
    "zero3-hooks": Patch(
        "training/sharding.py",
        "ZeRO-3's hooks (DeepSpeed) are taken off while all weights are held whole, and put back",
        "processes write answers of unlike length, and so call the model unlike often",
        needed="reinforcement learning with weights sharded by ZeRO-3",
    ),
    "zero3-loading": Patch(
        "training/sharding.py",
        "transformers' note that ZeRO-3 is at work is taken away while a model is loaded, and put back",
        "the model is hashed, probed or copied before it is sharded",
        needed="training under ZeRO-3",
    ),
    "quantised-plan": Patch(
        "analysis/quantised.py",
        "linear layers (torch) of a model without contents become PlannedNF4 or PlannedInt8",
        "remask plan counts what bitsandbytes would keep, without a GPU",
        needed="remask plan --quantization",
    ),
    "planned-experts": Patch(
        "analysis/plan_canvas.py",
        "experts (transformers) of a model without contents become EvenExperts",
        "a plan counts a step whose tokens are shared out evenly: a router without contents chooses nothing",
        needed="remask plan of a DiffusionGemma",
    ),
}


def applies(name: str) -> bool:
    """Return whether a patch is made. Raises UserError where the environment names one that there is not."""
    named = {part.strip() for part in os.environ.get(SWITCH, "").split(",")} - {""}
    optional = {name for name, patch in PATCHES.items() if patch.needed is None}
    unknown = sorted(named - optional - {"all"})
    if unknown:
        raise UserError(f"{', '.join(unknown)} cannot be left out", where=SWITCH, mend=f"give {', '.join(optional)}")
    return name not in optional or not named & {name, "all"}


class Mixin:
    """The base of what stands before a module's class in `derive`; it tells type checkers what that class has."""

    if TYPE_CHECKING:

        def forward(self, *given: Any, **keywords: Any) -> Any: ...


def derive(name: str, module: nn.Module, mixin: type[Mixin]) -> None:
    """Turn a module into one of a class derived from its class, with the mixin before it: libraries build what they
    build. The new class is named after both ("NarrowLayerOfLlamaDecoderLayer").
    """
    if applies(name) and not isinstance(module, mixin):
        own: Any = type(module)
        before: Any = mixin
        module.__class__ = _derived(own, before)


@cache
def _derived(kind: Any, mixin: Any) -> Any:
    return type(f"{mixin.__name__}Of{kind.__name__}", (mixin, kind), {"__module__": mixin.__module__})


def exchange(name: str, instance: Any, method: str, function: Callable[..., Any]) -> None:
    """Give one object another method, where the patch is made."""
    if applies(name):
        vars(instance)[method] = function


@contextmanager
def exchanged(name: str, instance: Any, method: str, function: Callable[..., Any]) -> Iterator[None]:
    """Give one object another method for a while. It has its class's before and afterwards."""
    exchange(name, instance, method, function)
    try:
        yield
    finally:
        vars(instance).pop(method, None)
