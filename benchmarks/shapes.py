"""Models of random weights and rows of GSM8K-like lengths, and what is measured on the shapes that fit the machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from measure import Figure, release, table

from remask.data.canvas import Row
from remask.models.llada import LLaDAConfig, LLaDAModelLM


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int

    @property
    def name(self) -> str:
        return f"V {self.vocabulary:,}, width {self.width}, {self.layers} layers"


LAPTOP = Shape(126_464, 512, 8, 8, 1408)
"""LLaDA's vocabulary on a body that two CPU cores can train."""
WIDE = Shape(32_000, 768, 12, 12, 2048)
LLADA_8B = Shape(126_464, 4096, 32, 32, 12288)


def memory_of(device: str) -> int | None:
    """Bytes of a CUDA device; None elsewhere, where the shapes are small."""
    return torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None


def fitting(shape: Shape, memory: int | None) -> Shape:
    """With as many of its layers as can be trained in a device's memory. Half of that is for weights, gradients and
    AdamW's two states, two bytes each; the rest for activations and for full logits.
    """
    if memory is None:
        return shape
    outside = 2 * shape.vocabulary * shape.width
    layer = 4 * shape.width**2 + 3 * shape.width * shape.feed_forward
    return replace(shape, layers=min(shape.layers, int((memory / 2 / 8 - outside) // layer)))


def build(shape: Shape, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Any:
    """A LLaDA of this shape: the last three ids are EOS, an unused one, and the mask."""
    V = shape.vocabulary
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LLaDAModelLM(
                LLaDAConfig(
                    vocab_size=V,
                    d_model=shape.width,
                    n_layers=shape.layers,
                    n_heads=shape.heads,
                    mlp_hidden_size=shape.feed_forward,
                    max_sequence_length=4096,
                    eos_token_id=V - 3,
                    pad_token_id=V - 3,
                    mask_token_id=V - 1,
                )
            )
        finally:
            torch.set_default_dtype(before)
    return model


def gsm8k_like(count: int, shape: Shape, seed: int = 0) -> list[Row]:
    """Random tokens; lengths log-normal about a median prompt of 85 tokens (template included) and answer of 110."""
    rng = np.random.default_rng([seed, 0xB])
    rows = []
    for number in range(count):
        prompt = int(np.clip(rng.lognormal(np.log(85), 0.35), 40, 250))
        answer = int(np.clip(rng.lognormal(np.log(110), 0.45), 30, 400))
        ids = rng.integers(0, shape.vocabulary - 3, prompt + answer).tolist()
        rows.append(Row(ids[:prompt], ids[prompt:], f"row {number}"))
    return rows


def answers(count: int, shape: Shape, length: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, response) [count, P + length]: answers of random tokens to one prompt, as a rollout's group."""
    (row,) = gsm8k_like(1, shape)
    generator = torch.Generator().manual_seed(0)
    written = torch.randint(shape.vocabulary - 3, (count, length), generator=generator)
    ids = torch.cat([torch.tensor(row.prompt).expand(count, -1), written], dim=1)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    response[:, -length:] = True
    return ids, response


def print_figures(doc: str | None, rounds: int, *ways: Callable[[int, Shape, str], list[Figure]]) -> None:
    """A benchmark's command: each way of measuring, at LLaDA-8B's shape on a CUDA device, at small ones elsewhere."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    shapes, device = ((LLADA_8B,), "cuda") if on_gpu else ((LAPTOP, WIDE), "cpu")
    for shape in shapes:
        for way in ways:  # each as soon as it is done
            print(table(way(arguments.rounds, shape, device)) + "\n", flush=True)
            release()
