"""Whether torch.compile pays: the body of a model's forward pass as it is and compiled, and after how many passes.

    python benchmarks/compile_speed.py [--rounds 7]

The whole body is compiled for one shape: answers of other lengths are compiled again, and so is every part of a batch
that is cut short. A layer by itself is compiled for any shape, and serves for all of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from measure import Figure, in_turns, ratio, wait
from shapes import Shape, build, print_figures

ROWS, LENGTH = 4, 224
OTHERS = ((3, 150), (6, 300), (1, 90))
LAYERS = 8
"""Of a CUDA device's larger shape: what compiling takes grows with their number, and the ratio does not."""


def few_layers(shape: Shape, device: str) -> Shape:
    return shape if device == "cpu" else replace(shape, layers=min(LAYERS, shape.layers))


@torch.no_grad()
def measure(rounds: int, shape: Shape, device: str = "cpu") -> list[Figure]:
    shape = few_layers(shape, device)
    model: Any = build(shape, device=device).eval()
    ids = torch.randint(shape.vocabulary - 3, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(model.model, dynamic=False)

    def run(body: Any) -> None:
        body(input_ids=ids, use_cache=False)

    run(model.model)
    started = time.perf_counter()
    run(compiled)
    wait()
    compiling = time.perf_counter() - started
    times = in_turns({"eager": lambda: run(model.model), "compiled": lambda: run(compiled)}, rounds=rounds)
    middle, low, high = ratio(times["eager"], times["compiled"])
    saved = sorted(times["eager"])[rounds // 2] - sorted(times["compiled"])[rounds // 2]
    part = f"torch.compile: {shape.name}, {ROWS} rows of {LENGTH}"
    figures = [
        Figure(part, "forward of the body, against eager", middle, low, high),
        Figure(part, "compiling it", compiling, unit="s"),
    ]
    if saved > 0:
        figures.append(Figure(part, "forwards until that is made up for", compiling / saved, unit=""))
    return figures


def by_layer(rounds: int, shape: Shape, device: str = "cpu") -> list[Figure]:
    """With its gradient, as in training: batches of several shapes first, then the time of one."""
    shape = few_layers(shape, device)
    model: Any = build(shape, device=device).train()
    compiled: Any = build(shape, device=device).train()
    for layer in compiled.model.layers:
        layer.compile(dynamic=True)

    def run(body: Any, rows: int = ROWS, length: int = LENGTH) -> None:
        ids = torch.ones(rows, length, dtype=torch.long, device=device)
        body.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
        body.zero_grad()

    started = time.perf_counter()
    for rows, length in ((ROWS, LENGTH), *OTHERS):
        run(compiled, rows, length)
    wait()
    compiling = time.perf_counter() - started
    for rows, length in OTHERS:
        run(model, rows, length)
    times = in_turns({"eager": lambda: run(model), "compiled": lambda: run(compiled)}, rounds=rounds)
    part = f"torch.compile, each layer by itself: {shape.name}, {ROWS} rows of {LENGTH}"
    return [
        Figure(part, "body with its gradient, against eager", *ratio(times["eager"], times["compiled"])),
        Figure(part, f"first pass of {1 + len(OTHERS)} shapes", compiling, unit="s"),
    ]


if __name__ == "__main__":
    print_figures(__doc__, 7, measure, by_layer)
