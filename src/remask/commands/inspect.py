"""`remask inspect`: where a model is unsure, and what a method makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.commands.options import console, load_named, parse, refuse_unwritable
from remask.config import InspectConfig
from remask.errors import UserError

EXAMPLES = """Examples:
  remask inspect
  remask inspect --model runs/x --data my.jsonl --rows 8 --html inspect.html
  remask inspect --objective gift-raw --time 0.3 --json inspect.json"""


def run(arguments: Sequence[str]) -> int:
    config = parse(InspectConfig, arguments, command="inspect", examples=EXAMPLES)
    record = inspect_examples(config)
    show(record["examples"])
    if config.html:
        from remask.report.html import write_inspection

        page = write_inspection(record["examples"], Path(config.html), model=config.model, objective=config.objective)
        print(f"written to {page}")
    return 0


def inspect_examples(config: InspectConfig) -> dict[str, Any]:
    """Read the entropy map as the config says and write the record where it says."""
    from remask.analysis.entropy_map import entropy_map
    from remask.data.canvas import build_rows
    from remask.data.sources import load_examples
    from remask.files import write_atomically
    from remask.models.facts import facts
    from remask.sft.presets import resolve
    from remask.tasks.generated import generated_examples, is_generated

    if not 0 < config.time <= 1:
        raise UserError(f"time = {config.time}", mend="it lies in (0, 1]")
    if config.rows < 1:
        raise UserError(f"rows = {config.rows}", mend="it is 1 or more")
    refuse_unwritable(config.json)
    objective = resolve(config.objective)
    model, tokenizer = load_named(config)
    known = facts(model, tokenizer)
    if is_generated(config.data):
        examples = generated_examples(config.data, split="validation", prompt_style=known.prompt_style)
    else:
        examples = load_examples(config.data).examples
    rows = build_rows(examples[: config.rows], tokenizer, max_length=config.max_length, over_long="error").rows
    found = entropy_map(
        model, tokenizer, rows, objective, mask_id=known.mask_id, eos_id=known.eos_ids[0], time=config.time
    )
    record = {"kind": "remask.inspect", "model": config.model, "objective": config.objective, "examples": found}
    if config.json:
        write_atomically(Path(config.json), json.dumps(record, ensure_ascii=False))
    return record


def show(examples: Sequence[dict[str, Any]]) -> None:
    """Each answer with its tokens coloured by entropy, and the surest and least sure of them."""
    from rich.text import Text

    terminal = console()
    top = max((value for example in examples for value in example["entropy"]), default=1.0) or 1.0
    terminal.print(f"[dim]entropy in nats: black on white is 0, on red {top:.2f}[/dim]", highlight=False)
    for example in examples:
        terminal.print(Text(example["prompt"].strip(), style="dim"))
        text = Text()
        for token, entropy in zip(example["tokens"], example["entropy"], strict=True):
            fade = round(255 * (1 - entropy / top))
            text.append(token.replace("\n", "⏎\n"), style=f"black on rgb(255,{fade},{fade})")
        terminal.print(text)
        ranked = sorted(range(len(example["tokens"])), key=lambda i: -example["entropy"][i])
        for title, places in (("least sure", ranked[:5]), ("surest", ranked[-3:])):
            shown = "  ".join(
                f"{example['tokens'][i]!r} "
                + " ".join(
                    f"{sign} {example[key][i]:.2f}"
                    for sign, key in (("H", "entropy"), ("β", "beta"), ("p", "rate"))
                    if example[key] is not None
                )
                for i in places
            )
            terminal.print(f"  {title}: {shown}", style="dim", highlight=False, markup=False)
