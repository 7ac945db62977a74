"""`remask sft`."""

from __future__ import annotations

from collections.abc import Sequence

from remask.commands.ending import tell
from remask.commands.options import parse
from remask.config import SftConfig
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask sft --objective gift --data my.jsonl --output-dir runs/gift
  remask sft --config recipes/tiny/gift.yaml --trainer.learning_rate 1e-4 --output-dir runs/x
  remask sft --config runs/x/config.yaml --resume auto
  remask sft --lora.rank 16 --lora.targets q_proj v_proj --choices.normaliser response

Rows have prompt + completion, messages, question + answer, or s1K's columns."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask sft` with these arguments and return the exit code."""
    config = parse(SftConfig, arguments, command="sft", examples=EXAMPLES)
    with uncollected():
        from remask.sft.run import run_sft

    names = ("train_loss", "eval_loss", "eval_nll")
    return tell(run_sft(config), command="sft", objective=config.objective, names=names)
