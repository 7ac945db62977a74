"""`remask tour`: the whole main job on the embedded model, in minutes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from remask import config as configs
from remask.commands.options import console, parse
from remask.config import (
    CanvasConfig,
    DecodingConfig,
    EvalConfig,
    HeldOutConfig,
    InspectConfig,
    PolicyEngineConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
    TourConfig,
    TrainerConfig,
)
from remask.errors import UserError
from remask.files import refuse_unwritable_folder
from remask.imports import uncollected
from remask.progress import duration

EXAMPLES = """Examples:
  remask tour
  remask tour --objectives sft gift gift-permuted --seeds 0 1 2 --output-dir tour-control"""

MARK = ".remask-tour"
"""A folder with this file is a tour's: a new tour may write over it."""

TOUR_RUN = SftConfig(
    model="tiny",
    data="generated:sudoku+countdown:1000",
    eval_data="generated:sudoku+countdown:64",
    canvas=CanvasConfig(max_length=160),
    trainer=TrainerConfig(
        learning_rate=1e-4,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=5,
        eval_steps=63,
        eval_draws=2,
        report_to=("none",),
    ),
)
"""What every fine-tuning run of the tour trains with; `recipes/tiny/` says the same in YAML."""

TOUR_RL = RlConfig(
    model="tiny",
    tasks="sudoku,countdown",
    problems=1000,
    max_steps=18,
    rollout=RolloutConfig(
        prompts=8, completions=8, inner_updates=2, batch_size=64, decoding=DecodingConfig(temperature=1.0)
    ),
    held_out=HeldOutConfig(tasks="none"),
    trainer=PolicyEngineConfig(
        learning_rate=1e-4, per_device_train_batch_size=64, logging_steps=2, report_to=("none",)
    ),
)
"""The reinforcement-learning stage; `recipes/tiny/espo.yaml` says the same."""


def run(arguments: Sequence[str]) -> int:
    config = parse(TourConfig, arguments, command="tour", examples=EXAMPLES)
    started = time.perf_counter()
    folder = Path(config.output_dir)
    base = configs.load(SftConfig, config.recipe) if config.recipe else TOUR_RUN
    if not config.objectives or not config.seeds:
        raise UserError("a tour needs an objective and a seed")
    for name, values in (("objectives", config.objectives), ("seeds", config.seeds)):
        if len(set(values)) < len(values):
            raise UserError(f"{name} {' '.join(map(str, values))}: one is given twice")
    if min(config.n, config.rows, *(seed + 1 for seed in config.seeds)) < 1:
        raise UserError("n and rows are 1 or more, seeds 0 or more")
    from remask.rl.presets import resolve as resolve_policy
    from remask.sft.presets import resolve

    for objective in config.objectives:
        resolve(objective)
    if config.reinforce != "none":
        resolve_policy(config.reinforce)
    refuse_unwritable_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UserError("holds something other than a tour", where=str(folder), mend="give another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    records = _run(config, base, folder)
    from remask.report import write_report

    runs = [_run_folder(folder, name, seed) for seed in config.seeds for name in _methods(config)]
    report = write_report(
        runs, folder / "report.html", title="Remask tour", evaluations=[folder / "start" / "eval.json"]
    )
    show(records, config)
    print(f"\n{report}  ({duration(time.perf_counter() - started)} in all)")
    return 0


def _run_folder(folder: Path, objective: str, seed: int) -> Path:
    return folder / f"{objective}-{seed}"


def _methods(config: TourConfig) -> list[str]:
    return [*config.objectives, *([config.reinforce] if config.reinforce != "none" else [])]


def _run(config: TourConfig, base: SftConfig, folder: Path) -> list[Path]:
    """Evaluate the start, train and evaluate every arm; the evaluation files, the start's first."""
    with uncollected():
        from remask.commands.inspect import inspect_examples
        from remask.evaluation.evaluate import evaluate_model
        from remask.sft.run import run_sft

    total, done = 2 * len(config.seeds) * len(_methods(config)) + 1, 0

    def announce(what: str) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)

    (folder / "start").mkdir(parents=True, exist_ok=True)
    files = [folder / "start" / "eval.json"]
    announce(f"evaluating {base.model} as it is")
    evaluate_model(
        EvalConfig(model=base.model, n=config.n, json=str(files[0]), batch_size=50, overwrite=True), label="start"
    )

    def evaluate(output: Path, name: str, seed: int) -> None:
        announce(f"evaluating {name}, seed {seed}")
        files.append(output / "eval.json")
        evaluate_model(
            EvalConfig(model=str(output), n=config.n, json=str(files[-1]), batch_size=50, overwrite=True),
            label=f"{name}, seed {seed}",
        )

    for seed, objective in [(seed, objective) for seed in config.seeds for objective in config.objectives]:
        output = _run_folder(folder, objective, seed)
        announce(f"fine-tuning with {objective}, seed {seed}")
        outcome = run_sft(
            replace(
                base,
                objective=objective,
                seed=seed,
                output_dir=str(output),
                data=f"generated:sudoku+countdown:{config.rows}",
                max_steps=config.max_steps,
                overwrite=True,
            ),
            label=f"{objective}, seed {seed}",
        )
        if not outcome.finished:  # Ctrl-C: the run noted it, the tour ends
            raise KeyboardInterrupt
        evaluate(output, objective, seed)
        if seed == config.seeds[0]:
            inspect_examples(
                InspectConfig(
                    model=base.model,
                    data="generated:sudoku+countdown:2",
                    objective=objective,
                    json=str(output / "inspect.json"),
                )
            )
    for seed in config.seeds if config.reinforce != "none" else ():
        start, output = (_run_folder(folder, name, seed) for name in (config.objectives[-1], config.reinforce))
        announce(f"reinforcing {start.name} with {config.reinforce}")
        _reinforce(config, start, output, seed)
        evaluate(output, config.reinforce, seed)
    return files


def _reinforce(config: TourConfig, start: Path, output: Path, seed: int) -> None:
    from remask.rl.run import run_rl

    steps = TOUR_RL.max_steps if config.max_steps is None else min(config.max_steps, TOUR_RL.max_steps)
    run = replace(
        TOUR_RL,
        model=str(start),
        objective=config.reinforce,
        seed=seed,
        output_dir=str(output),
        max_steps=steps,
        overwrite=True,
    )
    if not run_rl(run, label=f"{config.reinforce}, seed {seed}").finished:
        raise KeyboardInterrupt


def show(files: Sequence[Path], config: TourConfig) -> None:
    """The table of all arms, then each against the first."""
    from rich import box
    from rich.table import Table

    from remask.commands.compare import show as show_comparison
    from remask.evaluation.arms import START, load_evaluation, pool
    from remask.evaluation.compare import compare_arms
    from remask.evaluation.settings import in_force
    from remask.report.words import plural

    arms = pool(load_evaluation(path) for path in files)
    names = [START, *_methods(config)]
    tasks = arms[START].tasks
    seeds = len(config.seeds)
    table = Table(
        title=f"Accuracy, % [95 % interval]; n = {config.n} test problems per task, {plural(seeds, 'training seed')}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("arm")
    for task in tasks:
        table.add_column(task, justify="right")
    for name in names:
        cells = []
        for task in tasks:
            interval = arms[name].interval(task, "accuracy")
            cells.append(f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
        table.add_row(name, *cells)
    terminal = console()
    terminal.print(table)
    for objective in config.objectives[1:]:
        found = compare_arms(arms[config.objectives[0]], arms[objective], arms[START])
        show_comparison(found, config.objectives[0], objective)
    if config.reinforce != "none":
        before = config.objectives[-1]
        found = compare_arms(arms[before], arms[config.reinforce], arms[START])
        show_comparison(found, before, config.reinforce)
    first = json.loads(Path(files[0]).read_text())
    settings = ", ".join(f"{key} {value}" for key, value in in_force(first["decoding"]).items())
    terminal.print(f"[dim]decoding: {settings}[/dim]", highlight=False)
