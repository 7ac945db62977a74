"""`remask eval`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from remask.commands.options import console, load_named, parse, refuse_unwritable
from remask.config import EvalConfig
from remask.errors import UserError
from remask.progress import duration

EXAMPLES = """Examples:
  remask eval --model runs/x --tasks sudoku,countdown --json x.json
  remask eval --model runs/x --tasks sudoku=4x4_test_sudoku.csv --n 200
  remask eval --model GSAI-ML/LLaDA-8B-Instruct --dtype bfloat16 --tasks gsm8k,math500 --json base.json \\
    --adapter runs/gift-lora --decoding.max-new-tokens 256 --decoding.steps 128 --decoding.block-length 32
  remask eval --model runs/x --tasks humaneval --allow-code-execution --processes 2 --json code.json
  remask eval --model tiny --decoding.steps 80 --decoding.reveal margin"""


def run(arguments: Sequence[str]) -> int:
    config = parse(EvalConfig, arguments, command="eval", examples=EXAMPLES)
    try:
        if config.processes != 1 and "WORLD_SIZE" not in os.environ:
            return _launch(config, arguments)
        record = evaluate_model(config)
    except KeyboardInterrupt:
        if config.json:
            print("\nanswers so far are kept: the same command goes on from them", file=sys.stderr)
        raise
    if record is None:  # another process writes the record
        return 0
    if config.json:
        print(f"written to {config.json}")
    show(record)
    return 0


def _launch(config: EvalConfig, arguments: Sequence[str]) -> int:
    """The same command in several processes, each told its number as launchers do; if one ends badly or this one is
    stopped, all end.
    """
    if config.processes < 1:
        raise UserError(f"processes = {config.processes}", mend="it is 1 or more")
    if not config.json:
        raise UserError("several processes meet at the record's file", mend="give --json FILE")
    world = config.processes
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world))}
    running: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)  # by way of `finally`: no process outlives this one

    before = signal.signal(signal.SIGTERM, stop)
    try:
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
        signal.signal(signal.SIGTERM, before)
        for process in running:
            if process.poll() is None:
                process.terminate()
        for process in running:
            process.wait()


def evaluate_model(config: EvalConfig, *, quiet: bool = False, label: str = "evaluating") -> dict[str, Any] | None:
    """Evaluate as the config says and write the record where it says. None in all processes but the first."""
    from remask.evaluation.journal import Journal, fingerprint, weights_stamp
    from remask.evaluation.run import Shard, evaluate, identity
    from remask.files import write_atomically
    from remask.models.facts import facts
    from remask.models.lora import base_of, is_adapter
    from remask.sampling.generate import decoding_for
    from remask.tasks.benchmark import Asking, read_template

    if config.n is not None and config.n < 1:
        raise UserError(f"n = {config.n}", mend="it is 1 or more")
    if config.batch_size < 1:
        raise UserError(f"batch_size = {config.batch_size}", mend="it is 1 or more")
    refuse_unwritable(config.json)
    template = read_template(config.prompt_template)
    benchmarks = _benchmarks(config)
    if template is not None and len(benchmarks) > 1:
        raise UserError("one prompt template cannot serve several tasks", mend="evaluate them one by one")
    arm, run_seed = identity(config.adapter or config.model)
    shard = Shard.from_environment()
    if shard.world > 1 and not config.json:
        raise UserError("several processes meet at the record's file", mend="give --json FILE")
    model, tokenizer = load_named(config, device=_device(config.device, shard.local_rank))
    decoding = decoding_for(model, **config.decoding.given())
    style = config.prompt_style or facts(model, tokenizer).prompt_style
    asking = Asking(cast(Any, style), template, config.system, config.prefill)
    weights = [config.model, config.adapter, config.dtype, config.quantization]
    folders = [config.model, config.adapter, base_of(config.model) if is_adapter(config.model) else None]
    stamps = [weights_stamp(folder) for folder in folders if folder]
    problems = [[b.task.name, b.source, [p.key for p in b.problems]] for b in benchmarks]
    journal = Journal(
        Path(config.json) if config.json else None,
        fingerprint([weights, stamps, problems, decoding.described(), asking.described()]),
        rank=shard.rank,
        overwrite=config.overwrite,
    )
    if journal.answers and shard.rank == 0 and not quiet:
        print(f"{len(journal.answers)} answers of an unfinished run are there: going on", file=sys.stderr)
    record = evaluate(
        model,
        tokenizer,
        benchmarks,
        decoding,
        asking=asking,
        name=config.model,
        arm=config.arm or arm,
        run_seed=run_seed,
        batch_size=config.batch_size,
        journal=journal,
        shard=shard,
        quiet=quiet or shard.rank != 0,
        label=label,
    )
    if record is not None and config.json:
        write_atomically(Path(config.json), json.dumps(record, ensure_ascii=False))
        journal.remove()
    return record


def _benchmarks(config: EvalConfig) -> list[Any]:
    """What to evaluate on, the sandbox tried out first where code is to be run."""
    from remask.tasks.benchmark import Benchmark

    sandbox = None
    if config.allow_code_execution:
        from remask.sandbox import Sandbox

        sandbox = Sandbox()
        sandbox.check()
    benchmarks = [
        Benchmark.parse(text.strip(), count=config.n, split=config.split, seed=config.problem_seed, sandbox=sandbox)
        for text in config.tasks.split(",")
    ]
    names = [benchmark.task.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise UserError(
            f"a task is given twice: {config.tasks}", mend="evaluate the second source with a run of its own"
        )
    return benchmarks


def _device(device: str, local_rank: int) -> str:
    import torch

    from remask.models.load import pick_device

    picked = pick_device(device)
    if picked != "cuda":
        return picked
    if local_rank >= (count := torch.cuda.device_count()):
        raise UserError(
            f"process {local_rank + 1} has no GPU: there are {count}", mend="use as many --processes as GPUs"
        )
    return f"cuda:{local_rank}"


def show(record: dict[str, Any]) -> None:
    """The scores as a table, with the decoding that gave them."""
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
        if unended := task["generation"]["unended"]:
            terminal.print(
                f"{name}: {unended} of {task['n']} answers fill the whole canvas without an end: cut off? "
                "(--decoding.max-new-tokens)",
                highlight=False,
            )
    if any(len(task["metrics"]) > 1 for task in record["tasks"].values()):
        terminal.print("[dim]* what published figures report[/dim]", highlight=False)
    terminal.print(f"[dim]decoding: {settings}; {duration(record['seconds'])}[/dim]", highlight=False)
