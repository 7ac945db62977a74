"""Answers a second: Remask's sampler against other projects' (`peers.py`), and in float32 the same tokens.

Exact sampling, in which every step computes everything, and sampling with Fast-dLLM's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from measure import Figure, Variant, in_turns, peak_memory, ratio, release
from shapes import LAPTOP, Shape, build

from remask.sampling import Decoding, run

PROMPT, CANVAS, BLOCK = 96, 128, 32
Generate = Callable[..., torch.Tensor]
EXACT: dict[str, Generate] = {
    "LLaDA's generate.py (2025-06), dllm's sampler": peers.llada_generate,
    "Fast-dLLM's generate.py (v1)": peers.fast_dllm_generate,
}
CACHED: dict[str, dict[str, Generate]] = {
    name: {f"Fast-dLLM's {name} cache (v1)": partial(peers.fast_dllm_generate, cache=name)}
    for name in ("prefix", "dual")
}


def measure(rounds: int, shape: Shape = LAPTOP, device: str = "cpu", steps: int = 4) -> list[Figure]:
    """`steps` for the whole canvas, with a cache 4 for each block: fewer than tokens, so that a round does not take
    minutes. What a step costs hardly depends on how many tokens it writes.
    """
    figures = []
    cached_steps = 4 * CANVAS // BLOCK
    model: Any = build(shape, device=device).eval()
    for rows, temperature in ((1, 0.0), (4, 0.0), (1, 1.0)):
        decoding = decoded(steps, temperature=temperature)
        part = f"sampling, exact, temperature {temperature:g}: {shape.name}, {said(rows, decoding)}"
        figures += compare(part, model, prompts(rows, shape, device), decoding, EXACT, rounds)
    for name, others in CACHED.items():
        decoding = decoded(cached_steps, cache=name)
        part = f"sampling, cached, temperature 0: {shape.name}, {said(1, decoding)}"
        figures += compare(part, model, prompts(1, shape, device), decoding, others, rounds)
    del model
    release()
    return [*figures, *agreement(shape if device == "cpu" else LAPTOP, device, steps, cached_steps)]


def decoded(steps: int, **chosen: Any) -> Decoding:
    return Decoding(max_new_tokens=CANVAS, steps=steps, block_length=BLOCK, stop_early=False, **chosen)


def said(rows: int, decoding: Decoding) -> str:
    return f"{CANVAS} tokens in {decoding.steps} steps, blocks of {BLOCK}, {rows} row{'s' * (rows > 1)}"


def prompts(rows: int, shape: Shape, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary - 3, (rows, PROMPT), generator=generator).to(device)


class Ways:
    """Remask (named "") and others writing the same canvases, and what each wrote last."""

    def __init__(self, model: Any, prompt: torch.Tensor, decoding: Decoding, others: dict[str, Generate]) -> None:
        self.written: dict[str, torch.Tensor] = {}
        generator = torch.Generator(prompt.device).manual_seed(0)
        canvas: dict[str, Any] = {"length": CANVAS, "steps": decoding.steps, "block": BLOCK}
        canvas |= {"temperature": decoding.temperature, "generator": generator}
        self.runs: dict[str, Variant] = {"": lambda: self.keep("", run(model, prompt, None, decoding).ids)}
        for name, generate in others.items():
            self.runs[name] = lambda name=name, write=generate: self.keep(name, write(model, prompt, **canvas))

    def keep(self, name: str, ids: torch.Tensor) -> None:
        self.written[name] = ids

    def same(self, name: str) -> float:
        """The share of tokens that are Remask's."""
        return (self.written[""] == self.written[name]).float().mean().item()


def compare(
    part: str, model: Any, prompt: torch.Tensor, decoding: Decoding, others: dict[str, Generate], rounds: int
) -> list[Figure]:
    ways = Ways(model, prompt, decoding, others)
    ways.runs[""]()
    memory = {name: peak_memory(run) for name, run in ways.runs.items()}  # and warms up
    times = in_turns(ways.runs, rounds=rounds, warm_up=0)
    figures = []
    for name in others:
        figures.append(Figure(part, f"against {name}", *ratio(times[name], times[""]), bar=1.0))
        share = memory[""] / max(1, memory[name])
        figures.append(Figure(part, f"peak memory, against {name}", share, bar=1.0, more_is_better=False))
        if decoding.temperature == 0:
            figures.append(Figure(part, f"tokens equal in bfloat16, {name}", ways.same(name), unit="%"))
    return figures


def agreement(shape: Shape, device: str, steps: int, cached_steps: int) -> list[Figure]:
    """The tokens at temperature 0, with weights in float32."""
    model: Any = build(shape, torch.float32, device).eval()
    figures = []
    cached = [(decoded(cached_steps, cache=name), others) for name, others in CACHED.items()]
    for decoding, others in [(decoded(steps), EXACT), *cached]:
        ways = Ways(model, prompts(1, shape, device), decoding, others)
        for way in ways.runs.values():
            way()
        for name in others:
            part = f"tokens at temperature 0 in float32: {shape.name}"
            figures.append(Figure(part, f"equal to those of {name}", ways.same(name), bar=1.0, unit="%"))
    return figures
