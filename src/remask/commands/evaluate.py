"""`remask eval`."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.ending import leaving_on_sigterm
from remask.commands.options import console, parse
from remask.config import EvalConfig
from remask.data.token_classes import POSITIONAL
from remask.errors import UserError
from remask.imports import uncollected
from remask.progress import duration
from remask.report.words import plural

EXAMPLES = """Examples:
  remask eval --model runs/x --tasks sudoku,countdown --json x.json
  remask eval --model runs/x --tasks sudoku=4x4_test_sudoku.csv --n 200
  remask eval --model GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 --tasks gsm8k,math500 --json base.json \\
    --adapter runs/gift-lora --decoding.max-new-tokens 256 --decoding.steps 128 --decoding.block-length 32
  remask eval --model runs/x --tasks match=held_out.jsonl --json mine.json     # rows of your own: is it right?
  remask eval --model runs/x --data held_out.jsonl --likelihood --json l.json  # rows of your own: how likely?
  remask eval --model runs/x --tasks my_task.py:MyTask=problems.jsonl
  remask eval --model runs/x --tasks humaneval --allow-code-execution --processes 2 --json code.json
  remask eval --model tiny --decoding.steps 80 --decoding.reveal margin"""


def run(arguments: Sequence[str]) -> int:
    """Run `remask eval` with these arguments and return the exit code."""
    config = parse(EvalConfig, arguments, command="eval", examples=EXAMPLES)
    known = config.json is not None and Path(config.json).exists() and not config.overwrite
    try:
        alone = config.processes == 1 or (known and config.processes > 1)  # what is finished is shown, or refused
        if not alone and "WORLD_SIZE" not in os.environ:
            return _launch(config, arguments)
        with uncollected():
            from remask.evaluation.evaluate import evaluate_model

        record = evaluate_model(config)
    except KeyboardInterrupt:
        if config.json:
            print("\nanswers so far are kept: the same command goes on from them", file=sys.stderr)
        raise
    if record is None:  # another process writes the record
        return 0
    if config.json:
        print(f"{config.json} holds this evaluation already" if known else f"written to {config.json}")
    show(record)
    return 0


def _launch(config: EvalConfig, arguments: Sequence[str]) -> int:
    """The same command in several processes, each told its number as launchers do; if one ends badly or this one is
    stopped, all end.
    """
    if config.processes < 1:
        raise UserError(f"processes = {config.processes}", mend="give 1 or more")
    if not config.json:
        raise UserError("several processes meet at the record's file", mend="give --json FILE")
    world = config.processes
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
    running: list[subprocess.Popen[bytes]] = []

    try:
        with leaving_on_sigterm():
            for rank in range(world):
                number = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                command = [sys.executable, "-m", "remask.cli", "eval", *arguments]
                running.append(subprocess.Popen(command, env={**threads, **os.environ, **number}))
            while any(process.poll() is None for process in running):
                if any(process.poll() for process in running):
                    break
                time.sleep(0.1)
        failed = next((process.returncode for process in running if process.returncode), 0)
        if failed < 0:
            print(
                f"remask eval: signal {-failed} killed a process (9: perhaps for memory); answers so far are kept: "
                "the same command goes on from them",
                file=sys.stderr,
            )
        return failed if failed >= 0 else 128 - failed
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


def show(record: dict[str, Any]) -> None:
    """Print the scores as a table, with the decoding of those whose answers were written."""
    from rich import box
    from rich.table import Table

    from remask.evaluation.settings import in_force

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
            mark = " *" if metric == task["published_metric"] and len(task["metrics"]) > 1 else ""
            table.add_row(name, metric + mark, f"{100 * value['mean']:.1f} %", interval, str(value["n"]))
    terminal = console()
    terminal.print(table)
    settings = ", ".join(f"{key} {value}" for key, value in in_force(record["decoding"]).items())
    for name, task in record["tasks"].items():
        if "nats_per_token" in task:
            nats = task["nats_per_token"]
            terminal.print(
                f"{name}: at most {nats:.3f} nats a token, perplexity {math.exp(nats):.2f} "
                f"(ELBO, {plural(task['draws'], 'draw')}); the score is the geometric mean of a row's token "
                "probabilities",
                highlight=False,
            )
            if classes := task.get("classes"):
                terminal.print(f"{name}, nats a token by class (tokens): {by_class(classes)}", highlight=False)
        if unended := task["generation"]["unended"]:
            terminal.print(
                f"{name}: {unended} of {task['n']} answers fill the whole canvas without an end: cut off? "
                "(--decoding.max-new-tokens)",
                highlight=False,
            )
        if spent := task["generation"].get("row_forwards"):
            written, seconds = task["generation"]["tokens"], task["generation"]["seconds"]
            terminal.print(
                f"[dim]{name}: {written / spent:.2f} tokens for each forward that an answer takes part in, "
                f"{written / seconds:,.0f} tokens a second[/dim]",
                highlight=False,
            )
    if any(len(task["metrics"]) > 1 for task in record["tasks"].values()):
        terminal.print("[dim]* what published figures report[/dim]", highlight=False)
    written = [name for name, task in record["tasks"].items() if "nats_per_token" not in task]
    of = "" if len(written) == len(record["tasks"]) else f" of {', '.join(written)}"
    decoding = f"decoding{of}: {settings}; " if written else ""
    terminal.print(f"[dim]{decoding}{duration(record['seconds'])}[/dim]", highlight=False)


def by_class(classes: Mapping[str, tuple[int, float]]) -> str:
    """Return the mean of each class in words, those first that say most of the whole; then those of places (the answer,
    first tokens of steps), whose tokens are of a class above too.
    """
    ordered = sorted(classes.items(), key=lambda item: (item[0] in POSITIONAL, -item[1][1]))
    said = [f"{name} {nats / tokens:.2f} ({tokens})" for name, (tokens, nats) in ordered]
    lexical = sum(name not in POSITIONAL for name, _ in ordered)
    return ", ".join(said[:lexical]) + ("; of them " + ", ".join(said[lexical:]) if lexical < len(said) else "")
