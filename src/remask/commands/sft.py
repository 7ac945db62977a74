"""`remask sft`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from remask.commands.options import parse
from remask.config import SftConfig
from remask.progress import duration

EXAMPLES = """Examples:
  remask sft --objective gift --data my.jsonl --output-dir runs/gift
  remask sft --config recipes/tiny/gift.yaml --trainer.learning_rate 1e-4 --output-dir runs/x
  remask sft --config runs/x/config.yaml --resume auto
  remask sft --lora.rank 16 --lora.targets q_proj v_proj --choices.normaliser response

Rows have prompt + completion, messages, question + answer, or s1K's columns."""


def run(arguments: Sequence[str]) -> int:
    config = parse(SftConfig, arguments, command="sft", examples=EXAMPLES)
    from remask.sft.run import run_sft

    outcome = run_sft(config)
    if outcome.signal is not None:
        print(
            f"stopped by signal {outcome.signal}; a checkpoint is saved. "
            f"Go on with: remask sft --config {outcome.folder}/config.yaml --resume auto",
            file=sys.stderr,
        )
        return 128 + outcome.signal
    if not outcome.metrics:
        print(f"{outcome.folder} is already finished", file=sys.stderr)
        return 0
    if os.environ.get("RANK", "0") != "0":
        return 0
    shown = {key: outcome.metrics[key] for key in ("train_loss", "eval_loss", "eval_nll") if key in outcome.metrics}
    numbers = "  ".join(f"{key} {value:.4f}" for key, value in shown.items())
    print(f"{outcome.folder}: {config.objective} finished in {duration(outcome.seconds)}  {numbers}")
    return 0
