"""Attention of short rows on a CPU in bfloat16, forward and backward: products written out against PyTorch's own.

    OMP_NUM_THREADS=1 python benchmarks/attention_speed.py

Each line is 16 rows (4 from 300 tokens on) of one layer. Both are measured by turns; medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from remask.models import products
from remask.models.products import attend

SHAPES = ((70, 9, 3), (100, 9, 3), (300, 9, 3), (100, 12, 12), (300, 12, 12))


def own(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
    return scaled_dot_product_attention(query, key, value)


def seconds(attention: Callable[..., Tensor], inputs: list[Tensor], asked: Tensor) -> float:
    begun = time.perf_counter()
    torch.autograd.grad(attention(*inputs), inputs, asked)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    products.LONGEST = 1000  # to see where they stop to pay, too
    print("tokens  heads  of keys  PyTorch's, ms  products, ms  ratio (range)")
    for length, heads, shared in SHAPES:
        rows = 16 if length < 300 else 4
        inputs = [
            torch.randn(rows, count, length, 64, dtype=torch.bfloat16, requires_grad=True)
            for count in (heads, shared, shared)
        ]
        asked = torch.randn(rows, heads, length, 64, dtype=torch.bfloat16)
        for attention in (own, attend):
            seconds(attention, inputs, asked)
        pairs = [(seconds(own, inputs, asked), seconds(attend, inputs, asked)) for _ in range(rounds)]
        ratios = sorted(a / b for a, b in pairs)
        theirs, ours = (statistics.median(each) * 1e3 for each in zip(*pairs, strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        middle = statistics.median(ratios)
        print(f"{length:6} {heads:6} {shared:8} {theirs:14.1f} {ours:13.1f}  {middle:.1f} ({low:.1f}-{high:.1f})")


if __name__ == "__main__":
    main()
