"""All figures of speed and memory, in one table: `make bench`.

    python benchmarks/bench.py [--rounds 3] [--only sft sampling] [--json FILE]

Those of fine-tuning, sampling, likelihoods and policy updates are ratios to what other projects compute (`peers.py`) on
the same model and rows, timed in turns in this run: `--only sft sampling likelihood policy` runs them alone. With a
CUDA device the models have LLaDA-8B's shape, else shapes that two CPU cores can train; what passes leave out,
adapters, the head and fused kernels are timed there too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import adapters_speed
import approximate_speed
import block_speed
import head_speed
import kernels_speed
import likelihood_speed
import passes_speed
import plan_check
import policy_speed
import sampling_speed
import scaling
import sft_speed
import torch
from measure import Figure, in_turns, ratio, release, table
from shapes import LAPTOP, LLADA_8B, WIDE

from remask.environment import hardware, versions


def start_up(rounds: int) -> list[Figure]:
    """`remask --help` beside an empty Python, which it cannot be faster than."""
    script = Path(sys.executable).with_name("remask")
    remask = [str(script)] if script.exists() else [sys.executable, "-m", "remask.cli"]
    times = in_turns(
        {
            "help": lambda: subprocess.run([*remask, "--help"], check=True, capture_output=True),
            "python": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        },
        rounds=max(5, rounds),
    )
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    imports = {"waits": "from remask.imports import uncollected\nwith uncollected(): import remask.sft.run"}
    imports["works"] = "import remask.sft.run"
    loads = in_turns(
        {
            name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            for name, code in imports.items()
        },
        rounds=rounds,
    )
    return [
        Figure("start-up", "remask --help", middle["help"], unit="s", bar=0.3, more_is_better=False),
        Figure("start-up", "python -c ''", middle["python"], unit="s", more_is_better=False),
        Figure(
            "start-up", "what `remask sft` imports", statistics.median(loads["waits"]), unit="s", more_is_better=False
        ),
        Figure("start-up", "without the collector's work, against with it", *ratio(loads["works"], loads["waits"])),
    ]


ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL, LARGE = (LLADA_8B, LLADA_8B) if ON_GPU else (LAPTOP, WIDE)
BOTH = (LLADA_8B,) if ON_GPU else (LAPTOP, WIDE)
PARTS: dict[str, Callable[[int], list[Figure]]] = {
    "sft": lambda rounds: sft_speed.measure(rounds, SMALL, DEVICE),
    "sampling": lambda rounds: sampling_speed.measure(rounds, SMALL, DEVICE),
    "approximate": lambda rounds: approximate_speed.measure(rounds, device=DEVICE),
    "blocks": lambda rounds: block_speed.measure(rounds, SMALL, DEVICE),
    "likelihood": lambda rounds: likelihood_speed.measure(rounds, SMALL, DEVICE),
    "policy": lambda rounds: policy_speed.measure(rounds, SMALL, DEVICE),
    "probes": lambda rounds: sft_speed.measure_probes(rounds, SMALL, DEVICE),
    "scaling": lambda rounds: scaling.measure(rounds, LARGE, DEVICE),
    "plan": lambda rounds: plan_check.measure(rounds, BOTH, DEVICE),
    "start-up": start_up,
}
if SMALL != LARGE:
    PARTS["sampling-wide"] = lambda rounds: sampling_speed.measure(rounds, LARGE, DEVICE)
    PARTS["blocks-wide"] = lambda rounds: block_speed.measure(rounds, LARGE, DEVICE)
if ON_GPU:  # where they take seconds
    PARTS |= {
        "padding": lambda rounds: passes_speed.measure(rounds, LLADA_8B, DEVICE),
        "adapters": lambda rounds: adapters_speed.measure(rounds, LLADA_8B, DEVICE),
        "head": lambda rounds: head_speed.measure(rounds, LLADA_8B, DEVICE),
    }
if ON_GPU and find_spec("liger_kernel"):
    PARTS["kernels"] = lambda rounds: [*kernels_speed.parts(rounds), *kernels_speed.layers(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    started, figures = time.perf_counter(), []
    for name in arguments.only:
        figures += PARTS[name](arguments.rounds)
        release()
        print(f"{name}: {time.perf_counter() - started:.0f} s gone", file=sys.stderr, flush=True)
        if arguments.json:  # after each part: what was measured is kept whatever comes
            record = {"hardware": hardware(), "versions": versions(), "rounds": arguments.rounds}
            arguments.json.write_text(json.dumps({**record, "figures": [f.row() for f in figures]}, indent=1))
    described = hardware()
    machine = described.get("gpu") or f"{described['processor']}, {described['threads']} threads"
    rounds = f"median of {arguments.rounds} rounds (of the slowest things one fewer), lowest – highest"
    print(f"\n{machine}, torch {torch.__version__}; {rounds}\n")
    print(table(figures))


if __name__ == "__main__":
    main()
