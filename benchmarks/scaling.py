"""How time grows with longer answers and more rows, beside the arithmetic that grows with them; and how much of the
machine's matrix products it makes use of.

Arithmetic: 2 per weight and token in a forward pass (6 in a training step), 4·length·width a layer for attention (12),
and the output matrix where logits are needed: at the masked tokens.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from measure import Figure, in_turns, release
from sft_speed import Stepper, adamw, with_adapters
from shapes import WIDE, Shape, build, fitting, memory_of

from remask.data.canvas import Row
from remask.sampling import Decoding, run

PROMPT = 32


def body_flops(shape: Shape, length: int, scored: float | None = None) -> float:
    """Of one row's forward pass without the head. The last layer's feed-forward part is computed for scored tokens
    only (None: for all).
    """
    feed_forward = 3 * shape.width * shape.feed_forward
    weights = shape.layers * (4 * shape.width**2 + feed_forward)
    left_out = 0.0 if scored is None else 2 * (length - scored) * feed_forward
    return length * 2 * weights + attention_flops(shape, length) - left_out


def attention_flops(shape: Shape, length: int) -> float:
    return 4.0 * shape.layers * length**2 * shape.width


def head_flops(shape: Shape, positions: float) -> float:
    return 2 * positions * shape.width * shape.vocabulary


def step_flops(shape: Shape, rows: int, prompt: int, answer: int, *, frozen: bool = False) -> float:
    """Of an SFT step: on average half of an answer is masked. Frozen weights have no gradient, but both factors of
    attention's products do (the adapters' own part is small and not counted).
    """
    length = prompt + answer
    forward = body_flops(shape, length, answer / 2) + head_flops(shape, answer / 2)
    return rows * (2 * forward + attention_flops(shape, length) if frozen else 3 * forward)


def matmul_peak(dtype: torch.dtype, device: str) -> Any:
    """(products, their arithmetic): on CUDA several, next to which a launch is nothing."""
    size, times = (2048, 1) if device == "cpu" else (8192, 20)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            a @ b

    return products, times * 2.0 * size**3


def rows_of(count: int, answer: int, shape: Shape) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary - 3, (count, PROMPT + answer), generator=generator).tolist()
    return [Row(row[:PROMPT], row[PROMPT:], "row") for row in ids]


def fastest(variants: dict[str, Any], rounds: int) -> dict[str, float]:
    return {name: min(seconds) for name, seconds in in_turns(variants, rounds=rounds).items()}


def measure(rounds: int, shape: Shape = WIDE, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> list[Figure]:
    shape, rows = fitting(shape, memory_of(device)), 4 if device == "cpu" else 8
    model: Any = build(shape, dtype, device).requires_grad_(True)
    product, product_flops = matmul_peak(dtype, device)
    prompt = torch.randint(shape.vocabulary - 3, (4, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    decoding = Decoding(max_new_tokens=128, steps=16, block_length=32, stop_early=False)
    lengths, batches = (64, 512), (1, 32)
    ids = torch.randint(shape.vocabulary - 3, (8, 256), device=device)

    @torch.no_grad()
    def forward() -> None:
        model.model(input_ids=ids, use_cache=False)

    with tempfile.TemporaryDirectory() as folder:
        optimizer = adamw(model)
        variants: dict[str, Any] = {
            "product": product,
            "forward": forward,
            "sampling": lambda: run(model, prompt, None, decoding),
        }
        variants |= {f"length {n}": Stepper(model, rows_of(rows, n, shape), "sft", folder, optimizer) for n in lengths}
        variants |= {f"rows {n}": Stepper(model, rows_of(n, 64, shape), "sft", folder, optimizer) for n in batches}
        best = fastest(variants, rounds)
        del optimizer, variants
        release()
        adapted = with_adapters(model)
        lora = Stepper(adapted, rows_of(rows, lengths[-1], shape), "sft", folder, adamw(adapted))
        best |= fastest({"LoRA": lora}, rounds)
    peak = product_flops / best["product"]
    flops = {
        "forward": 8 * body_flops(shape, 256),
        "sampling": 16 * 4 * (body_flops(shape, PROMPT + 128, 16) + head_flops(shape, 16)),
        **{f"length {n}": step_flops(shape, rows, PROMPT, n) for n in lengths},
        **{f"rows {n}": step_flops(shape, n, PROMPT, 64) for n in batches},
        "LoRA": step_flops(shape, rows, PROMPT, lengths[-1], frozen=True),
    }
    kind = str(dtype).removeprefix("torch.")
    use = {name: flops[name] / best[name] / peak for name in flops}
    part = f"use of the machine: {shape.name}, {kind}, of {peak / 1e9:,.0f} GFLOP/s in matrix products"
    figures = [
        Figure(part, "forward, 8 rows of 256", use["forward"], unit="%"),
        Figure(part, f"SFT step, {rows} rows, answers of 512", use["length 512"], bar=0.45, unit="%"),
        Figure(part, "with LoRA", use["LoRA"], bar=None if device == "cpu" else 0.5, unit="%"),
        Figure(part, "sampling, 4 rows, 128 tokens in 16 steps", use["sampling"], unit="%"),
    ]
    part = f"growth of an SFT step's time, over that of its arithmetic: {shape.name}"
    for what, few, many in (("length", lengths[0], lengths[-1]), ("rows", batches[0], batches[-1])):
        first, last = f"{what} {few}", f"{what} {many}"
        growth = (best[last] / best[first]) / (flops[last] / flops[first])
        figures.append(Figure(part, f"{what} {few} → {many}", growth, bar=1.0, more_is_better=False))
    return figures
