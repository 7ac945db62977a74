"""Whether torch.compile pays: the body of a model forward as it is and compiled, and after how many forwards.

    python benchmarks/compile_speed.py [--rounds 7]

Compiled for one shape. Answers of other lengths are compiled again, and so is every part of a batch that is cut short.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from measure import Figure, in_turns, ratio, table, wait
from shapes import LAPTOP, LLADA_8B, WIDE, Shape, build

ROWS, LENGTH = 4, 224


@torch.no_grad()
def measure(rounds: int, shape: Shape, device: str = "cpu") -> list[Figure]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    shapes = (LLADA_8B,) if on_gpu else (LAPTOP, WIDE)
    print(table([f for s in shapes for f in measure(arguments.rounds, s, "cuda" if on_gpu else "cpu")]))


if __name__ == "__main__":
    main()
