"""A layer's pointwise parts (norm, gate) as transformers computes them and by fused kernels (PyTorch's,
Liger's); then four layers with their gradient, as they are and with `remask/models/fused.py`. Needs a CUDA device, and
Liger installed.

    python benchmarks/kernels_speed.py [--rounds 7]

In bfloat16, at LLaDA-8B's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from measure import Figure, in_turns, peak_memory, ratio
from shapes import LLADA_8B, Shape, build, print_figures
from torch import Tensor
from torch.nn.functional import rms_norm, silu
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from remask import kernels

ROWS, LENGTH, LAYERS = 8, 544, 4
Way = Callable[..., Any]


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out: Tensor = LlamaRMSNorm.forward(SimpleNamespace(weight=weight, variance_epsilon=eps), x)
    return out


def ways() -> dict[str, dict[str, Way]]:
    """norm(x, weight, eps) and gate(gate, up), each by those who have it."""
    found: dict[str, dict[str, Way]] = {
        "norm": {"as it is": plain_norm, "PyTorch's": lambda x, w, eps: rms_norm(x, w.shape, w, eps)},
        "gate": {"as it is": lambda gate, up: silu(gate) * up},
    }
    if find_spec("liger_kernel"):
        from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction

        found["norm"]["Liger's"] = lambda x, w, eps: LigerRMSNormFunction.apply(x, w, eps, 0.0, "llama", False)
        found["gate"]["Liger's"] = lambda gate, up: LigerSiLUMulFunction.apply(gate, up)
    return found


def inputs(shape: Shape, device: str) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """What each part is given, anew for every pass."""

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=torch.bfloat16)

    x, gate, up = (random(ROWS, LENGTH, n) for n in (shape.width, shape.feed_forward, shape.feed_forward))
    weight = torch.ones(shape.width, device=device, dtype=torch.bfloat16, requires_grad=True)

    def fresh(*tensors: Tensor) -> Iterator[Tensor]:
        """In memory of their own, as a product's outputs are, which a kernel may write over."""
        return (t.clone().requires_grad_() * 1 for t in tensors)

    return {
        "norm": lambda: (*fresh(x), weight, 1e-5),
        "gate": lambda: tuple(fresh(gate, up)),
    }


def parts(rounds: int, shape: Shape = LLADA_8B, device: str = "cuda") -> list[Figure]:
    """Forward and backward of each, above what making its inputs takes."""
    figures = []
    given = inputs(shape, device)
    for part, each in ways().items():

        def run(way: Way, part: str = part) -> None:
            out = way(*given[part]())
            outs = out if isinstance(out, tuple) else (out,)
            torch.autograd.backward(outs, [torch.ones_like(o) for o in outs])

        runs = {name: lambda way=way: run(way) for name, way in each.items()}
        runs["nothing"] = lambda: run(lambda *given: tuple(x for x in given if isinstance(x, Tensor) and x.grad_fn))
        times = in_turns(runs, rounds=rounds, warm_up=2)
        memory = {name: peak_memory(way) for name, way in runs.items()}
        above = {name: [a - b for a, b in zip(times[name], times["nothing"], strict=True)] for name in each}
        figures.append(Figure(part, "as it is", 1e3 * sorted(above["as it is"])[rounds // 2], unit="ms"))
        for name in list(each)[1:]:
            detail = f"memory {memory[name] / max(1, memory['as it is']):.2f}×"
            figures.append(Figure(part, name, *ratio(above["as it is"], above[name]), detail=detail))
    return figures


def layers(rounds: int, shape: Shape = LLADA_8B, device: str = "cuda") -> list[Figure]:
    """With their gradient, all weights trained and none."""
    few = replace(shape, layers=LAYERS, vocabulary=1000)
    ids = torch.randint(few.vocabulary - 3, (ROWS, LENGTH), device=device)
    figures = []
    for trained in (True, False):
        model: Any = build(few, device=device).train().requires_grad_(trained)
        model.enable_input_require_grads()

        def run(on: bool, model: Any = model) -> None:
            before, kernels.ON = kernels.ON, on
            model.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
            model.zero_grad()
            kernels.ON = before

        variants = {"as it is": lambda: run(False), "fused": lambda: run(True)}
        times = in_turns(variants, rounds=rounds, warm_up=2)
        memory = {name: peak_memory(variant) for name, variant in variants.items()}
        weights = LAYERS * (4 * few.width**2 + 3 * few.width * few.feed_forward)
        rate = (6 if trained else 4) * ids.numel() * weights / min(times["as it is"]) / 1e12
        part = f"{LAYERS} layers with gradient, {'trained' if trained else 'frozen'}"
        figures.append(Figure(part, "as it is", rate, unit="TFLOP/s"))
        detail = f"memory {memory['fused'] / max(1, memory['as it is']):.2f}×"
        figures.append(Figure(part, "fused", *ratio(times["as it is"], times["fused"]), detail=detail))
    return figures


if __name__ == "__main__":
    if not (torch.cuda.is_available() and find_spec("liger_kernel")):
        raise SystemExit("needs a CUDA device and Liger's kernels: pip install liger-kernel")
    print_figures(__doc__, 7, parts, layers)
