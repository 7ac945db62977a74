"""`remask eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask.commands.options import console, parse, refuse_unwritable
from remask.config import EvalConfig
from remask.errors import UserError
from remask.progress import duration

EXAMPLES = """Examples:
  remask eval --model runs/x --tasks sudoku,countdown --json x.json
  remask eval --model runs/x --tasks sudoku=4x4_test_sudoku.csv --n 200
  remask eval --model tiny --decoding.steps 80 --decoding.reveal margin"""


def run(arguments: Sequence[str]) -> int:
    config = parse(EvalConfig, arguments, command="eval", examples=EXAMPLES)
    record = evaluate_model(config)
    if config.json:
        print(f"written to {config.json}")
    show(record)
    return 0


def evaluate_model(config: EvalConfig, *, quiet: bool = False, label: str = "evaluating") -> dict[str, Any]:
    """Evaluate as the config says and write the record where it says."""
    from remask.evaluation.run import Benchmark, evaluate, identity
    from remask.models.load import load
    from remask.sampling.generate import decoding_for
    from remask.sft.checkpoints import write_atomically

    if config.n is not None and config.n < 1:
        raise UserError(f"n = {config.n}", mend="it is 1 or more")
    if config.batch_size < 1:
        raise UserError(f"batch_size = {config.batch_size}", mend="it is 1 or more")
    refuse_unwritable(config.json)
    benchmarks = [
        Benchmark.parse(text.strip(), count=config.n, split=config.split, seed=config.problem_seed)
        for text in config.tasks.split(",")
    ]
    names = [benchmark.task.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise UserError(
            f"a task is given twice: {config.tasks}", mend="evaluate the second source with a run of its own"
        )
    arm, run_seed = identity(config.adapter or config.model)
    model, tokenizer = load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        adapter=config.adapter,
        quantization=config.quantization,
    )
    record = evaluate(
        model,
        tokenizer,
        benchmarks,
        decoding_for(model, **config.decoding.given()),
        name=config.model,
        arm=config.arm or arm,
        run_seed=run_seed,
        prompt_style=config.prompt_style,
        batch_size=config.batch_size,
        quiet=quiet,
        label=label,
    )
    if config.json:
        write_atomically(Path(config.json), json.dumps(record, ensure_ascii=False))
    return record


def show(record: dict[str, Any]) -> None:
    """The scores as a table, with the decoding that gave them."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{record['model']} ({record['arm']}), 95 % intervals",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("task", "metric", "score", "interval", "n"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for name, task in record["tasks"].items():
        for metric, value in task["metrics"].items():
            interval = f"{100 * value['low']:.1f} – {100 * value['high']:.1f}"
            table.add_row(name, metric, f"{100 * value['mean']:.1f} %", interval, str(value["n"]))
    terminal = console()
    terminal.print(table)
    settings = ", ".join(f"{key} {value}" for key, value in record["decoding"].items() if value is not None)
    terminal.print(f"[dim]decoding: {settings}; {duration(record['seconds'])}[/dim]", highlight=False)
