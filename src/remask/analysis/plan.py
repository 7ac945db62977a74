"""What a training step will need before it is run: memory by kind, arithmetic, time.

The step is carried out on fake tensors, which have shapes and no contents: every storage that the real one would make
is counted from when it is made until it is let go. That gives what depends on the code as it is (activations and their
peak in the backward pass). What is sharded over devices is divided: weights, gradients and optimiser states by the
strategy's rule.

Shapes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from remask.analysis.plan_canvas import prepared, step_loss
from remask.analysis.plan_canvas import step_flops as canvas_flops
from remask.analysis.quantised import weight_bytes
from remask.choices import StrategyName
from remask.diffusion.head import two_pass_cross_entropy
from remask.errors import UserError

SHARDED: dict[StrategyName, tuple[str, ...]] = {
    "ddp": (),
    "zero1": ("optimiser",),
    "zero2": ("optimiser", "gradients"),
    "zero3": ("optimiser", "gradients", "weights"),
    "fsdp": ("optimiser", "gradients", "weights"),
}
"""The kinds of memory that each strategy spreads over the devices instead of keeping a copy on each."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


class Meter(TorchDispatchMode):
    """A meter counts the bytes of the storages made since it was entered, now and at the highest."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors_in((args, kwargs)):
            self._meet(tensor, made=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._meet(tensor, made=True)
        return out

    def _meet(self, tensor: Tensor, *, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # the same object for as long as the storage lives
        if key in self._seen:
            return
        size = storage.nbytes() if made else 0

        def gone(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class Need:
    """The bytes that one training step needs on one device, and the step's arithmetic.

    weights, gradients, optimiser: kept throughout. activations: what the forward pass leaves for the backward pass.
    working: what comes on top of these at the highest (logits of a chunk, gradients on their way, weights gathered from
    their shards). probe_flops: of a forward pass that reads entropies of the whole answer, twice `scored`.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    working: float
    flops: float
    probe_flops: float
    parameters: int
    trained: int

    @property
    def total(self) -> float:
        """Return all bytes, at the highest."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.working


def need(
    build: Callable[[], Any],
    *,
    rows: int,
    length: int,
    scored: int,
    strategy: StrategyName = "ddp",
    devices: int = 1,
    autocast: bool = False,
    checkpointing: bool = False,
) -> Need:
    """Return what an optimiser step with AdamW needs on each of `devices`: `rows` rows of `length` tokens, of which
    `scored` carry loss. `build` makes the model, its trained weights requiring gradient.

    Raises UserError for a model whose forward pass depends on values (a mixture of experts).
    """
    with torch.device("meta"):
        model = build()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    canvases = prepared(inner, sharded=bool(SHARDED[strategy]))
    with FakeTensorMode():
        pretend(model)
        if checkpointing:
            inner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        ids = torch.zeros(rows, length, dtype=torch.long)
        meter = Meter()
        try:
            with meter:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    _hidden, loss = (None, step_loss(inner, ids)) if canvases else _loss(inner, ids, scored)
                activations = meter.now
                loss.backward()
        except DynamicOutputShapeException as error:
            raise UserError("what this model computes depends on its routing", mend="plan a dense model") from error
        weights = list(model.parameters())
        trained = [p for p in weights if p.requires_grad]
        working = max(0, meter.peak - activations)
        if canvases:
            flops, probe = canvas_flops(inner, rows, length, frozen=inner is not model, again=checkpointing), 0.0
        else:
            flops = step_flops(inner, rows, length, scored, frozen=len(trained) < len(weights), again=checkpointing)
            probe = forward_flops(inner, rows, length, min(2 * scored, rows * length))
        parameters, count = sum(p.numel() for p in weights), sum(p.numel() for p in trained)
        gathered = 0 if canvases else gathered_bytes(inner, trained)
    # At the peak of a backward pass part of the gradients exist: they are counted once, as gradients.
    working = max(0.0, working - sum(p.nbytes for p in trained))
    if "weights" in SHARDED[strategy] and devices > 1:
        working += gathered
    return Need(
        **kept(model, strategy, devices),
        activations=activations,
        working=working,
        flops=flops,
        probe_flops=probe,
        parameters=parameters,
        trained=count,
    )


def _loss(model: Any, ids: Tensor, scored: int) -> tuple[Tensor, Tensor]:
    """The hidden states, which live as long as a step holds them, and the loss."""
    hidden = model.hidden_at(torch.arange(scored), input_ids=ids)
    return hidden, two_pass_cross_entropy(model.lm_head, hidden, torch.zeros(scored, dtype=torch.long)).sum()


def kept(model: Any, strategy: StrategyName = "ddp", devices: int = 1) -> dict[str, float]:
    """Return the bytes that a model to be trained takes on each device throughout, by kind. It may lie on the meta
    device.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    own = {"weights": weight_bytes(model), "gradients": trained, "optimiser": 2 * trained}
    return {kind: size / (devices if kind in SHARDED[strategy] else 1) for kind, size in own.items()}


def gathered_bytes(model: Any, trained: list[Tensor]) -> int:
    """Return the bytes that sharded weights take where they are whole: embedding and head throughout, two layers in
    turn (the one at work and the next), and the gradients of those that are trained until they are sharded again.
    """
    layers = model.model.layers
    own = {id(p) for p in trained}

    def size(parameters: Any) -> int:
        return sum(p.nbytes * (2 if id(p) in own else 1) for p in parameters)

    outside = {id(p) for p in layers.parameters()}
    return size(p for p in model.parameters() if id(p) not in outside) + 2 * size(layers[0].parameters())


def pretend(model: nn.Module) -> None:
    """Give a model that was made on the meta device fake weights, shared where they were shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in made:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(fake, parameter.requires_grad)
            module.register_parameter(name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if id(buffer) not in made:
                made[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
            module.register_buffer(name, made[id(buffer)])


def body_flops(model: Any, rows: int, length: int, scored: int) -> float:
    """Return the operations of a forward pass of the layers: 2 a weight and token, and 4·L·width a token and layer for
    attention. The last layer's feed-forward part is computed for scored tokens only.
    """
    layers, tokens = model.model.layers, rows * length
    left_out = 2 * (tokens - scored) * _matrices(layers[-1].mlp) if model.narrows else 0
    return float(tokens * 2 * _matrices(layers) - left_out) + attention_flops(model, rows, length)


def attention_flops(model: Any, rows: int, length: int) -> float:
    """Return the operations of attention in a forward pass: queries with keys, and their weights with values."""
    layers = model.model.layers
    width = model.config.num_attention_heads * layers[0].self_attn.head_dim
    return 4.0 * rows * length * length * width * len(layers)


def _matrices(module: nn.Module) -> int:
    """Weights of its matrices, without adapters'."""
    return sum(p.numel() for name, p in module.named_parameters() if p.dim() == 2 and "lora_" not in name)


def forward_flops(model: Any, rows: int, length: int, scored: int) -> float:
    """Return the operations of a forward pass of layers and head."""
    return body_flops(model, rows, length, scored) + 2.0 * scored * model.lm_head.weight.numel()


def step_flops(model: Any, rows: int, length: int, scored: int, *, frozen: bool, again: bool) -> float:
    """Return the operations of a training step: a forward pass, as much for the gradient of activations, as much for
    that of the weights unless they are frozen (adapters, whose part is small), and the layers once more with
    checkpointing.

    Both factors of attention's products are activations: their gradient is twice a forward pass whatever is frozen.
    """
    forward = forward_flops(model, rows, length, scored)
    backward = forward + attention_flops(model, rows, length) if frozen else 2 * forward
    return forward + backward + (body_flops(model, rows, length, scored) if again else 0.0)
