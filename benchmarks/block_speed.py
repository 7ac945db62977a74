"""Sampling of a block model: with the keys and values of finished blocks kept, against computing them at every step.

256 tokens in blocks of 32 after one prompt, four tokens a step, greedily: both ways compute the same numbers, and in
float32 they write the same tokens. The model is of random weights, made to attend block by block.

    python benchmarks/block_speed.py [--rounds 3]
"""

from __future__ import annotations

from typing import Any

import torch
from measure import Figure, in_turns, ratio
from shapes import Shape, build, fitting, gsm8k_like, memory_of, print_figures

from remask.diffusion.attention import BlockCausal
from remask.sampling import Decoding, run

BLOCK, TOKENS, STEPS = 32, 256, 64
WAYS = ("none", "exact")


def measure(rounds: int, shape: Shape, device: str) -> list[Figure]:
    shape = fitting(shape, memory_of(device))
    part = f"sampling by blocks: {shape.name}, {TOKENS} tokens in {STEPS} steps, blocks of {BLOCK}, 1 row"
    (row,) = gsm8k_like(1, shape)
    prompt = torch.tensor([row.prompt], device=device)
    model = block_model(shape, torch.bfloat16, device)
    ways = {kept: lambda kept=kept: run(model, prompt, None, decoding(kept)) for kept in WAYS}
    times = in_turns(ways, rounds=rounds, warm_up=0)
    return [
        Figure(part, "exact cache, against none", *ratio(times["none"], times["exact"]), bar=3.0),
        Figure(part, "tokens equal in float32", equal(shape, prompt, device), bar=1.0, unit="%"),
    ]


def block_model(shape: Shape, dtype: torch.dtype, device: str) -> Any:
    model = build(shape, dtype, device).eval()
    model.attention = BlockCausal(BLOCK)
    return model


def decoding(kept: Any, tokens: int = TOKENS) -> Decoding:
    return Decoding(max_new_tokens=tokens, steps=STEPS * tokens // TOKENS, cache=kept, stop_early=False)


def equal(shape: Shape, prompt: torch.Tensor, device: str) -> float:
    """The share of equal tokens, of two blocks."""
    model = block_model(shape, torch.float32, device)
    one, other = (run(model, prompt, None, decoding(kept, 2 * BLOCK)).ids for kept in WAYS)
    return (one == other).float().mean().item()


if __name__ == "__main__":
    print_figures(__doc__, 3, measure)
