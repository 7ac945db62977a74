"""How fast the operations that are compared with other projects could be at most on this machine.

A floor is the longer of two times: that of the operation's matrix products at the rate of one large product, and that
of reading its weights once a forward pass at the rate of a large copy. An optimiser step adds reading and writing
weights, gradients and AdamW's states. All rates and times are measured in this run; the operations are counted by
PyTorch while Remask's code runs. `at the floor` is how many times as fast as the other project Remask would then be: no
implementation of the same operations in the same precision can gain more.

    python benchmarks/floors.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from likelihood_speed import canvas_of, draws, elbo, elbo_of_espo
from measure import Variant, in_turns, release
from sampling_speed import EXACT, Ways, decoded, prompts
from scaling import matmul_peak
from sft_speed import FILL, ROWS, SFT, Peer, Stepper, adamw
from shapes import LAPTOP, WIDE, Shape, build, gsm8k_like
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

LLADA, ESPO = "LLaDA's generate.py (2025-06), dllm's sampler", "ESPO's trainer (fdac97d)"
COLUMNS = ("against", "GFLOP", "GB", "floor, ms", "Remask, ms", "share of the peak", "now, ×", "at the floor, ×")
STATES = 7
"""Numbers of AdamW a weight: weight, mean and square are read and written, the gradient is read."""


@dataclass(frozen=True)
class Floor:
    """One operation: GFLOP of products, GB that must be moved, and seconds: Remask's, the floor's, the others'."""

    what: str
    operations: float
    moved: float
    seconds: float
    floor: float
    others: dict[str, float]

    def row(self, peak: float) -> str:
        share = f"{self.operations / peak / self.seconds:.0%}"
        now, least = ([f"{t / s:.1f}" for t in self.others.values()] for s in (self.seconds, self.floor))
        return (
            f"| {self.what} | {', '.join(self.others)} | {self.operations:,.0f} | {self.moved:.1f} | "
            f"{1e3 * self.floor:,.0f} | {1e3 * self.seconds:,.0f} | {share} | {', '.join(now)} | {', '.join(least)} |"
        )


class Machine:
    """Products a second (GFLOP) and bytes a second (GB) of the two processor cores, at their best."""

    def __init__(self, rounds: int) -> None:
        product, operations = matmul_peak(torch.bfloat16, "cpu")
        read, written = torch.zeros(2, 1 << 28, dtype=torch.bfloat16)
        times = in_turns({"product": product, "copy": lambda: written.copy_(read)}, rounds=max(9, rounds))
        self.peak = operations / min(times["product"]) / 1e9
        self.bandwidth = 2 * read.nbytes / min(times["copy"]) / 1e9

    def floor(
        self, what: str, ours: Variant, others: dict[str, Variant], rounds: int, *, passes: float, states: float = 0.0
    ) -> Floor:
        """passes: GB of weights that forward passes read; states: GB that an optimiser moves besides."""
        operations = counted(ours)
        times = in_turns({"": ours, **others}, rounds=rounds)
        middle = {name: statistics.median(seconds) for name, seconds in times.items()}
        least = max(operations / self.peak, passes / self.bandwidth) + states / self.bandwidth
        return Floor(what, operations, passes + states, middle.pop(""), least, middle)


def counted(run: Variant) -> float:
    """GFLOP of an operation's products, attention's among them."""
    before, os.environ["REMASK_UNPATCHED"] = os.environ.get("REMASK_UNPATCHED"), "prepacked"  # else they are not seen
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_of(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward_of(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    try:
        with FlopCounterMode(display=False, custom_mapping={attention: forward_of, backward: backward_of}) as counter:
            run()
    finally:
        if before is None:
            del os.environ["REMASK_UNPATCHED"]
        else:
            os.environ["REMASK_UNPATCHED"] = before
    return counter.get_total_flops() / 1e9


def weights(model: Any) -> tuple[float, float]:
    """(GB of weights that a pass reads: all but the input embedding; GB of all)."""
    every = sum(p.nbytes for p in model.parameters()) / 1e9
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return every - (0 if tied else model.get_input_embeddings().weight.nbytes / 1e9), every


def sampling(machine: Machine, shape: Shape, rounds: int) -> list[Floor]:
    model: Any = build(shape).eval()
    read, _ = weights(model)
    found = []
    for rows in (1, 4):
        decoding = decoded(16)
        ways = Ways(model, prompts(rows, shape, "cpu"), decoding, {LLADA: EXACT[LLADA]})
        ours = ways.runs.pop("")
        what = f"128 tokens in 16 steps, {rows} row{'s' * (rows > 1)}"
        found.append(machine.floor(what, ours, dict(ways.runs), rounds, passes=16 * read))
    return found


def fine_tuning(machine: Machine, shape: Shape, rounds: int) -> list[Floor]:
    model: Any = build(shape).train()
    read, every = weights(model)
    with tempfile.TemporaryDirectory() as folder:
        ours = Stepper(model, gsm8k_like(ROWS, shape), "sft", folder, adamw(model), fill=FILL, mixed=False)
        others: dict[str, Variant] = {name: Peer(loss, ours) for name, loss in SFT.items()}
        return [machine.floor(f"SFT step, {ROWS} rows", ours, others, rounds, passes=3 * read, states=STATES * every)]


def likelihood(machine: Machine, shape: Shape, rounds: int) -> list[Floor]:
    model: Any = build(shape).eval()
    canvas = canvas_of(4, shape, "cpu")
    noise = draws(2, canvas)
    read, _ = weights(model)
    others: dict[str, Variant] = {ESPO: lambda: elbo_of_espo(model, canvas, noise)}
    return [machine.floor("ELBO, K = 2, 4 rows", lambda: elbo(model, canvas, noise), others, rounds, passes=2 * read)]


PARTS: tuple[Callable[[Machine, Shape, int], list[Floor]], ...] = (sampling, fine_tuning, likelihood)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine = Machine(arguments.rounds)
    print(f"{machine.peak:,.0f} GFLOP/s in bfloat16 products, {machine.bandwidth:.0f} GB/s in copies\n")
    for shape in (LAPTOP, WIDE):
        print(f"| {shape.name} | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * (len(COLUMNS) - 1)}")
        for part in PARTS:
            for floor in part(machine, shape, arguments.rounds):
                print(floor.row(machine.peak), flush=True)
            release()
        print()


if __name__ == "__main__":
    main()
