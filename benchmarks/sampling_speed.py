"""Answers a second, exact: Remask's sampler against the textbook's loop, and the same tokens at temperature 0."""

from __future__ import annotations

from typing import Any

import textbook
import torch
from measure import Figure, in_turns, peak_memory, ratio
from shapes import LAPTOP, WIDE, Shape, build

from remask.sampling import Decoding, run

ROWS, PROMPT, CANVAS, BLOCK = 4, 96, 128, 32
BARS = {LAPTOP: (4.0, 20.0), WIDE: (1.5, 3.0)}


def measure(
    rounds: int, shapes: tuple[Shape, ...] = (LAPTOP, WIDE), device: str = "cpu", steps: int = 4
) -> list[Figure]:
    """`steps` for the whole canvas: fewer than tokens, so that a round does not take minutes. What a step costs hardly
    depends on how many tokens it reveals.
    """
    figures = []
    for shape in shapes:
        model: Any = build(shape, device=device).eval()
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(shape.vocabulary - 3, (ROWS, PROMPT), generator=generator).to(device)
        greedy, drawn = BARS.get(shape, (None, None))
        figures += compare(model, prompt, 0.0, steps, rounds, shape, greedy)
        figures += compare(model, prompt, 1.0, steps, max(1, rounds - 1), shape, drawn)  # half a minute a round
    return figures


def compare(
    model: Any, prompt: torch.Tensor, temperature: float, steps: int, rounds: int, shape: Shape, bar: float | None
) -> list[Figure]:
    decoding = Decoding(
        max_new_tokens=CANVAS, steps=steps, block_length=BLOCK, temperature=temperature, stop_early=False
    )
    generator, written = torch.Generator(prompt.device).manual_seed(0), {}

    def ours() -> None:
        written["ours"] = run(model, prompt, None, decoding).ids

    def plain() -> None:
        written["plain"] = textbook.generate(
            model, prompt, length=CANVAS, steps=steps, block=BLOCK, temperature=temperature, generator=generator
        )

    ours()
    memory = peak_memory(ours) / peak_memory(plain)  # and warms up
    times = in_turns({"ours": ours, "plain": plain}, rounds=rounds, warm_up=0)
    part = f"sampling, exact: {shape.name}, block {BLOCK} of {CANVAS}, {ROWS} rows"
    figures = [
        Figure(part, f"temperature {temperature:g}", *ratio(times["plain"], times["ours"]), bar=bar),
        Figure(part, f"peak memory at temperature {temperature:g}", memory, more_is_better=False),
    ]
    if temperature == 0:
        same = (written["ours"] == written["plain"]).float().mean().item()
        figures.append(Figure(part, "tokens equal to the textbook's", same, bar=1.0, unit="%"))
    return figures
