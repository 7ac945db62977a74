"""`remask rl`."""

from __future__ import annotations

from collections.abc import Sequence

from remask.commands.ending import tell
from remask.commands.options import parse
from remask.config import RlConfig
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask rl --tasks sudoku --objective espo --output-dir runs/espo
  remask rl --model runs/gift --tasks sudoku,countdown --rollout.prompts 32 --trainer.learning-rate 1e-4
  remask rl --config recipes/espo/llada-8b-gsm8k.yaml --tasks gsm8k=train.jsonl
  remask rl --objective diffu-grpo --choices.kl none --rewards.functions task format --rewards.weights 1 0.2
  remask rl --data prompts.jsonl --rewards.functions my_rewards:judge --held-out.tasks gsm8k=test.jsonl
  remask rl --config runs/espo/config.yaml --resume auto

A reward function of your own: def judge(prompts, completions, **columns) -> list of numbers."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask rl` with these arguments and return the exit code."""
    config = parse(RlConfig, arguments, command="rl", examples=EXAMPLES)
    with uncollected():
        from remask.rl.run import run_rl

    outcome = run_rl(config)
    measured = [name for name in outcome.metrics if name.startswith("eval_")]
    return tell(outcome, command="rl", objective=config.objective, names=measured)
