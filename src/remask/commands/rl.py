"""`remask rl`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from remask.commands.options import parse
from remask.config import RlConfig
from remask.progress import duration

EXAMPLES = """Examples:
  remask rl --tasks sudoku --objective espo --output-dir runs/espo
  remask rl --model runs/gift --tasks sudoku,countdown --rollout.prompts 32 --trainer.learning-rate 1e-4
  remask rl --config recipes/espo/llada-8b-gsm8k.yaml --tasks gsm8k=train.jsonl
  remask rl --objective diffu-grpo --choices.kl none --rewards.functions task format --rewards.weights 1 0.2
  remask rl --data prompts.jsonl --rewards.functions my_rewards:judge --held-out.tasks gsm8k=test.jsonl
  remask rl --config runs/espo/config.yaml --resume auto

A reward function of your own: def judge(prompts, completions, **columns) -> list of numbers."""


def run(arguments: Sequence[str]) -> int:
    config = parse(RlConfig, arguments, command="rl", examples=EXAMPLES)
    from remask.rl.run import run_rl

    outcome = run_rl(config)
    if outcome.signal is not None:
        print(
            f"stopped by signal {outcome.signal}; a checkpoint is saved. "
            f"Go on with: remask rl --config {outcome.folder}/config.yaml --resume auto",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    if not outcome.metrics:
        print(f"{outcome.folder} is already finished", file=sys.stderr)
        return 0
    if os.environ.get("RANK", "0") != "0":
        return 0
    shown = {key: value for key, value in outcome.metrics.items() if key.startswith("eval_")}
    numbers = "  ".join(f"{key.removeprefix('eval_')} {value:.3f}" for key, value in shown.items())
    print(f"{outcome.folder}: {config.objective} finished in {duration(outcome.seconds)}  {numbers}")
    return 0
