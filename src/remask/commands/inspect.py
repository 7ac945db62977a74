"""`remask inspect`: where a model is unsure, and what a method makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.commands.looked_at import read_rows
from remask.commands.options import console, load_named, parse
from remask.config import InspectConfig
from remask.errors import UserError
from remask.files import refuse_unwritable

EXAMPLES = """Examples:
  remask inspect
  remask inspect --model runs/x --data my.jsonl --rows 8 --html inspect.html
  remask inspect --objective gift-raw --time 0.3 --json inspect.json
  remask inspect --classes --data my.jsonl --rows 500 --html classes.html"""

ROWS = {False: 4, True: 64}
"""The numbers of rows that are read where none is given: without and with classes."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask inspect` with these arguments and return the exit code."""
    config = parse(InspectConfig, arguments, command="inspect", examples=EXAMPLES)
    refuse_unwritable(config.html)
    record = inspect_examples(config)
    if config.classes:
        from remask.commands.inspect_classes import show_classes

        show_classes(record["classes"], objective=config.objective, time=config.time)
    else:
        show(record["examples"])
    if config.html:
        from remask.report.html import write_inspection

        page = write_inspection(record, Path(config.html))
        print(f"written to {page}")
    return 0


def inspect_examples(config: InspectConfig) -> dict[str, Any]:
    """Read the entropy map as the config says and write the record where it says."""
    from remask.analysis.entropy_map import entropy_map, without_fill
    from remask.data.canvas import Fill
    from remask.data.collate import Collator
    from remask.diffusion.objective import refuse_unmasking
    from remask.files import as_json, write_atomically
    from remask.models.facts import facts
    from remask.sft.presets import resolve

    if not 0 < config.time <= 1:
        raise UserError(f"time = {config.time}", mend="give a number in (0, 1]")
    if config.rows is not None and config.rows < 1:
        raise UserError(f"rows = {config.rows}", mend="give 1 or more")
    if config.classes and config.rows == 1:
        raise UserError("rows = 1: intervals come from how rows differ", mend="give 2 or more, or leave --classes out")
    refuse_unwritable(config.json)
    objective = resolve(config.objective)
    refuse_unmasking(objective)
    model, tokenizer = load_named(config)
    known = facts(model, tokenizer)
    style, default = known.prompt_style, ROWS[config.classes]
    rows = read_rows(config.data, config.rows, default, tokenizer, prompt_style=style, max_length=config.max_length)
    if config.classes and len(rows) < 2:
        raise UserError("1 row: intervals come from how rows differ", where=config.data, mend="give two or more")
    if config.classes:  # entropies as in training: with the fill
        collator = Collator(Fill.parse(known.fill), known.eos_ids[0], config.max_length, seed=0)
    else:
        collator = without_fill(rows, known.eos_ids[0])
    found = entropy_map(model, tokenizer, rows, objective, mask_id=known.mask_id, collator=collator, time=config.time)
    record: dict[str, Any] = {"kind": "remask.inspect", "model": config.model, "objective": config.objective}
    record["examples"] = found
    if config.classes:
        from remask.analysis.entropy_classes import entropy_classes
        from remask.analysis.token_errors import token_errors
        from remask.data.token_classes import classes_of

        errors = token_errors(model, rows, mask_id=known.mask_id, collator=collator)
        for row, example, wrong in zip(rows, found, errors, strict=True):
            fill = len(example["tokens"]) - len(row.response)
            example |= {**wrong, "classes": classes_of(tokenizer, row.response, fill=fill)}
        record["classes"] = entropy_classes(found)
    if config.json:
        write_atomically(Path(config.json), as_json(record))
    return record


def show(examples: Sequence[dict[str, Any]]) -> None:
    """Print each answer with its tokens coloured by entropy, and the surest and least sure of them."""
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
