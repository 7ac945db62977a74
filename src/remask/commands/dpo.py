"""`remask dpo`."""

from __future__ import annotations

from collections.abc import Sequence

from remask.commands.ending import tell
from remask.commands.options import parse
from remask.config import DpoConfig
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask dpo --data pairs.jsonl --output-dir runs/vrpo
  remask dpo --config recipes/tiny/vrpo.yaml --choices.draws 4 --output-dir runs/x
  remask dpo --model runs/gift --data trl-lib/ultrafeedback_binarized --eval-data trl-lib/ultrafeedback_binarized@test
  remask dpo --objective dpo --choices.beta 0.1 --choices.sft-weight 0 --lora.rank 16 --lora.targets all-linear
  remask dpo --config runs/x/config.yaml --resume auto

Rows have prompt + chosen + rejected, or chosen + rejected as conversations that begin with the prompt."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask dpo` with these arguments and return the exit code."""
    config = parse(DpoConfig, arguments, command="dpo", examples=EXAMPLES)
    with uncollected():
        from remask.preference.run import run_dpo

    names = ("train_loss", "eval_loss", "eval_accuracy", "eval_margin")
    return tell(run_dpo(config), command="dpo", objective=config.objective, names=names)
