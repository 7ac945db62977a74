"""Adapted layers: LoRA's products in the layer's precision (`remask/models/adapters.py`) against peft's own forward.

    python benchmarks/adapters_speed.py [--rounds 5]

One optimiser step of fine-tuning on GSM8K-like rows and one batch of answers, each also against peft's layers under
autocast, which rounds the adapter's weights too but goes over the outputs as often. Weights in bfloat16, adapters of
rank 8 in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from measure import Figure, in_turns, peak_memory, ratio, release
from peft.tuners.lora import Linear
from sft_speed import ROWS, Stepper, adamw
from shapes import LAPTOP, Shape, build, gsm8k_like, print_figures

from remask.config import LoraConfig
from remask.models import adapters
from remask.models.lora import add_adapter
from remask.sampling import Decoding, run

TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "all linear layers": ("all-linear",)}
DECODING = Decoding(max_new_tokens=128, steps=4, block_length=32, stop_early=False)


@contextmanager
def by_peft() -> Iterator[None]:
    """Adapted layers computed by peft's own code."""

    def forward(layer: Any, x: torch.Tensor, *given: Any, **keywords: Any) -> Any:
        return Linear.forward(layer, x, *given, **keywords)

    with patch.object(adapters.LeanAdapter, "forward", forward):
        yield


def ways(work: Callable[[], object], device: str) -> dict[str, Callable[[], None]]:
    """The work as it is, with peft's layers, and with peft's layers in mixed precision."""

    def as_it_is() -> None:
        work()

    def peft(mixed: bool) -> None:
        with by_peft(), torch.autocast(device, torch.bfloat16, enabled=mixed):
            work()

    return {"ours": as_it_is, "peft": lambda: peft(False), "peft, autocast": lambda: peft(True)}


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu") -> list[Figure]:
    figures = []
    for name, targets in TARGETS.items():
        lora = LoraConfig(rank=8, alpha=16, dropout=0.0, targets=targets)
        model = add_adapter(build(shape, device=device), lora, base_name="random")
        part = f"LoRA on {name}: {shape.name}"
        figures += step(part, model, shape, rounds, device)
        figures += sampling(part, model, shape, rounds, device)
        del model
        release()
    return figures


def step(part: str, model: Any, shape: Shape, rounds: int, device: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(model, gsm8k_like(ROWS, shape), "sft", folder, adamw(model), mixed=False)
        return compared(part, f"SFT step, {ROWS} rows", ways(stepper, device), rounds, memory=True)


def sampling(part: str, model: Any, shape: Shape, rounds: int, device: str) -> list[Figure]:
    figures = []
    for rows in (4, 32):
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(shape.vocabulary - 3, (rows, 96), generator=generator).to(device)
        work = ways(lambda prompt=prompt: run(model, prompt, None, DECODING), device)  # type: ignore[misc]
        figures += compared(part, f"sampling, {rows} rows", work, rounds)
    return figures


def compared(
    part: str, what: str, work: dict[str, Callable[[], None]], rounds: int, *, memory: bool = False
) -> list[Figure]:
    used = {name: peak_memory(way) for name, way in work.items()} if memory else {}  # and warms up
    times = in_turns(work, rounds=rounds, warm_up=0 if memory else 1)
    figures = []
    for name in list(work)[1:]:
        detail = f"memory {used['ours'] / used[name]:.2f}×" if memory else ""
        figures.append(Figure(part, f"{what}, against {name}", *ratio(times[name], times["ours"]), detail=detail))
    return figures


if __name__ == "__main__":
    print_figures(__doc__, 5, measure)
