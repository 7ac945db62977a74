"""What glibc's settings for memory do for a training step of SmolLM2's shape (135M parameters) on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/memory_speed.py

Processes with and without the settings of `scripts/smol.py` take turns; each makes steps of 16 rows of 96 tokens,
forward and backward through the layers, in bfloat16 with float32 weights. A process' figure is its steps' median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from smol import MEMORY

STEPS = 4


def child() -> None:
    """Print the seconds of each step after the first."""
    import torch
    from transformers import LlamaConfig

    from remask.models.converted import LlamaForMaskedLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49216,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForMaskedLM(config).train()
    ids = torch.randint(0, 49152, (16, 96))
    for count in range(STEPS + 1):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(ids).last_hidden_state
        hidden.float().square().mean().backward()
        model.zero_grad(set_to_none=True)
        if count:
            print(time.perf_counter() - begun, flush=True)


def measured(settings: dict[str, str]) -> float:
    command = [sys.executable, __file__, "--child"]
    said = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(map(float, said.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child()
        return
    pairs = []
    for _ in range(given.rounds):
        pairs.append((measured({}), measured(MEMORY)))
        print(f"as it is {pairs[-1][0]:.2f} s a step, with the settings {pairs[-1][1]:.2f} s", flush=True)
    ratios = sorted(before / after for before, after in pairs)
    print(f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f}-{ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
