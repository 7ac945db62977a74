"""The loss of chosen tokens from their hidden states, forward and backward, as libraries compute it: PyTorch's chunked
`linear_cross_entropy`, on CUDA also Liger's fused kernel where that is installed, and the full logits.

    python benchmarks/head_speed.py [--rounds 3]

Each token has a weight of its own. PyTorch's takes them by reduction="none", which computes the logits once more in the
backward pass; its sum, and Liger's, take none, and are timed without: what they would do if they did.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from measure import Figure, in_turns, peak_memory, ratio
from shapes import Shape, print_figures
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from remask.diffusion import token_loss
from remask.diffusion.head import weighted_cross_entropy

Loss = Callable[[Tensor], Tensor]
TOKENS = {"cpu": 64, "cuda": 4096}
"""Few on a CPU: PyTorch's chunks take a fifth of a second a token there."""


def losses(head: nn.Linear, targets: Tensor, weight: Tensor) -> dict[str, Loss]:
    """hidden states → Σ weight·ce, or Σ ce."""
    found: dict[str, Loss] = {
        "ours": lambda hidden: weighted_cross_entropy(head, hidden, targets, weight)[0],
        "full logits": lambda hidden: (cross_entropy(head(hidden).float(), targets, reduction="none") * weight).sum(),
    }
    if hasattr(nn, "LinearCrossEntropyOptions"):  # torch 2.13
        options = nn.LinearCrossEntropyOptions()

        def chunked(hidden: Tensor, reduction: str) -> Tensor:
            return functional.linear_cross_entropy(hidden, head.weight, targets, reduction=reduction, options=options)

        found["PyTorch's chunks"] = lambda hidden: (chunked(hidden, "none") * weight).sum()
        found["PyTorch's chunks, without weights"] = lambda hidden: chunked(hidden, "sum")
    if targets.is_cuda:

        def in_larger_chunks(hidden: Tensor) -> Tensor:
            before, token_loss.CHUNK_ELEMENTS = token_loss.CHUNK_ELEMENTS, 4 * token_loss.CHUNK_ELEMENTS
            try:
                return found["ours"](hidden)
            finally:
                token_loss.CHUNK_ELEMENTS = before

        found["ours, in chunks four times as large"] = in_larger_chunks
    if targets.is_cuda and find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["Liger's kernel, without weights"] = lambda hidden: liger(head.weight, hidden, targets)
    return found


def measure(rounds: int, shape: Shape, device: str = "cpu") -> list[Figure]:
    tokens = TOKENS[device]
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(shape.vocabulary, (tokens,), generator=generator).to(device)
    weight = torch.rand(tokens, generator=generator).to(device)
    start = torch.randn(tokens, shape.width, generator=generator).to(device, torch.bfloat16)
    figures = []
    for trained in (True, False):
        head = nn.Linear(shape.width, shape.vocabulary, bias=False, device=device, dtype=torch.bfloat16)
        head.requires_grad_(trained)

        def step(loss: Loss, head: nn.Linear = head) -> Tensor:
            hidden = start.clone().requires_grad_()
            loss(hidden).backward()
            head.weight.grad = None
            assert hidden.grad is not None
            return hidden.grad

        ways = losses(head, targets, weight)
        right = step(ways["full logits"])
        runs = {name: lambda way=way: step(way) for name, way in ways.items()}
        memory = {name: peak_memory(run) for name, run in runs.items()}
        times = in_turns(runs, rounds=rounds)
        part = (
            f"head: V {shape.vocabulary:,}, width {shape.width}, {tokens} tokens, {'trained' if trained else 'frozen'}"
        )
        for name in list(ways)[1:]:
            detail = f"memory {memory['ours'] / max(1, memory[name]):.2f}×"
            figures.append(Figure(part, f"against {name}", *ratio(times[name], times["ours"]), detail=detail))
        apart = (step(ways["ours"]) - right).norm() / right.norm()
        figures.append(
            Figure(part, "gradient, of the full logits', relative difference", apart.item(), unit="relative")
        )
    return figures


if __name__ == "__main__":
    print_figures(__doc__, 3, measure)
