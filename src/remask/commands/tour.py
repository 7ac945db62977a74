"""`remask tour`: what the tool is for, shown on a small embedded model in minutes.

It is a study (`recipes/studies/tour.yaml`) whose answer is said in sentences.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remask import config as configs
from remask.commands.ending import leaving_on_sigterm
from remask.commands.options import console, parse
from remask.config import StudyConfig, TourConfig
from remask.errors import UserError
from remask.files import refuse_unwritable_folder
from remask.imports import uncollected
from remask.progress import duration

if TYPE_CHECKING:
    from remask.evaluation.arms import Arm
    from remask.study.grid import Cell

EXAMPLES = """Examples:
  remask tour
  remask tour --quick
  remask tour --seeds 0 1 2 3 4 --output-dir tour-5-seeds"""

RECIPE = "recipes/studies/tour.yaml"
MARK = ".remask-tour"
"""The file that marks a folder as a tour's: a new tour may write over it."""
TASK, REINFORCED = "sudoku", "espo"
NAMES = {"sft": "SFT", "gift": "GIFT", "gift-permuted": "GIFT on the wrong tokens", "espo": "ESPO after GIFT"}
"""The names of the arms in sentences."""
COMPARED = (("gift", "sft"), ("gift-permuted", "sft"), ("espo", "gift"))
"""The (candidate, baseline) of each sentence."""

NEXT = """What next
  your data        remask sft --objective gift --data my.jsonl --output-dir runs/mine
  is it better?    remask eval --model tiny --tasks match=test.jsonl --json before.json
                   remask eval --model runs/mine --tasks match=test.jsonl --json after.json
                   remask compare before.json after.json
  your reward      remask rl --model runs/mine --data prompts.jsonl --rewards.functions my_rewards.py:reward
  talk to it       remask generate --model {model} "sudoku 2031 0002 0013 3004\""""


def run(arguments: Sequence[str]) -> int:
    """Run `remask tour` with these arguments and return the exit code."""
    config = parse(TourConfig, arguments, command="tour", examples=EXAMPLES)
    started = time.perf_counter()
    study = study_of(config)
    folder = Path(config.output_dir)
    with uncollected():
        from remask.study.grid import cells

    grid = cells(study, RECIPE)
    _prepare(folder, overwrite=config.overwrite)
    _carry_out(grid, folder / "cells", config.processes or min(2, os.cpu_count() or 1))
    links = _linked(grid, folder)
    arms = _arms(grid, folder / "cells")
    sentences = said(arms, study)
    from remask.report import write_report
    from remask.study.work import output

    report = write_report(
        list(links.values()),
        folder / "report.html",
        title="Remask tour",
        evaluations=[output(folder / "cells", cell.evaluation.name) for cell in grid],
        lead=sentences,
    )
    _show(arms, sentences, study)
    last = links.get((REINFORCED, study.seeds[0])) or links["gift", study.seeds[0]]
    print(f"\n{NEXT.format(model=last)}")
    print(f"\n{report}  ({duration(time.perf_counter() - started)} in all)")
    return 0


def study_of(config: TourConfig) -> StudyConfig:
    """Return the recipe with the options over it. Raises UserError for numbers no tour can have."""
    study = configs.load(StudyConfig, RECIPE)
    seeds = config.seeds if config.seeds is not None else ((0,) if config.quick else study.seeds)
    n = config.n if config.n is not None else 200 if config.quick else None
    steps = config.steps if config.steps is not None else 0 if config.quick else None
    for name, value, least in (
        ("n", n, 2),
        ("rows", config.rows, 1),
        ("steps", steps, 0),
        ("processes", config.processes, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} = {value}", mend=f"give {least} or more")
    base: dict[str, Any] = {kind: dict(values) for kind, values in study.base.items()}
    arms = {name: dict(patch) for name, patch in study.arms.items()}
    if n is not None:
        base["eval"] |= {"n": n, "batch_size": min(n, base["eval"]["batch_size"])}
    if config.rows is not None:
        base["sft"]["data"] = f"direct:{TASK}:{config.rows}"
    if steps == 0:
        del arms[REINFORCED]
    elif steps is not None:
        arms[REINFORCED]["rl"] = {**arms[REINFORCED]["rl"], "max_steps": steps}
    return replace(study, seeds=seeds, base=base, arms=arms)


def _prepare(folder: Path, *, overwrite: bool) -> None:
    refuse_unwritable_folder(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise UserError("holds something other than a tour", where=str(folder), mend="give another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        shutil.rmtree(folder / "cells", ignore_errors=True)
    (folder / MARK).touch()


def _carry_out(grid: Sequence[Cell], folder: Path, processes: int) -> None:
    """Train and evaluate, first without reinforcement learning, then with it."""
    from remask.study.schedule import run_all

    reinforced = [cell for cell in grid if cell.arm == REINFORCED]
    stages = (
        ("fine-tuning and evaluating", [cell for cell in grid if cell.arm != REINFORCED], processes),
        # Few long jobs: all at once they share the cores evenly, where a last one alone would leave a core idle.
        ("reinforcing with ESPO", reinforced, processes if processes == 1 else max(processes, len(reinforced))),
    )
    try:
        with leaving_on_sigterm():
            for label, members, at_a_time in stages:
                run_all(members, folder, at_a_time, label=label)
    except KeyboardInterrupt:
        print("\nwhat is done is kept: the same command goes on from there", file=sys.stderr)
        raise


def _linked(grid: Sequence[Cell], folder: Path) -> dict[tuple[str, int | None], Path]:
    """(arm, seed) → the run's folder, under a name a person would give it."""
    from remask.study.work import output

    links = {}
    for cell in grid:
        if cell.training:
            link = folder / f"{cell.arm}-{cell.seed}"
            if link.is_symlink():
                link.unlink()
            elif link.exists():  # of a tour by an older version
                shutil.rmtree(link)
            link.symlink_to(output(Path("cells"), cell.training[-1].name), target_is_directory=True)
            links[cell.arm, cell.seed] = link
    return links


def _arms(grid: Sequence[Cell], folder: Path) -> dict[str, Arm]:
    from remask.evaluation.arms import load_evaluation, pool
    from remask.study.work import output

    return pool(load_evaluation(output(folder, cell.evaluation.name)) for cell in grid)


def said(arms: dict[str, Arm], study: StudyConfig) -> list[str]:
    """Return what was found of each pair that is compared, in words; p values are corrected for their number (Holm)."""
    from remask.evaluation.compare import compare_arms
    from remask.evaluation.statistics import holm
    from remask.report.finding import finding

    pairs = [pair for pair in COMPARED if pair[0] in study.arms]
    found = [
        next(c.difference for c in compare_arms(arms[baseline], arms[candidate]) if c.metric == "accuracy")
        for candidate, baseline in pairs
    ]
    corrected = holm({number: d.p_value for number, d in enumerate(found)})
    return [
        finding(NAMES[candidate], NAMES[baseline], d, corrected[number], seeds=len(study.seeds), things="puzzles")
        for number, ((candidate, baseline), d) in enumerate(zip(pairs, found, strict=True))
    ]


def _show(arms: dict[str, Arm], sentences: Sequence[str], study: StudyConfig) -> None:
    """The table of all arms, how their answers were decoded, and what was found."""
    from rich import box
    from rich.table import Table

    from remask.evaluation.arms import START
    from remask.evaluation.settings import in_force
    from remask.report.words import plural

    n, seeds = len(arms[START].problem_ids(TASK)), plural(len(study.seeds), "training seed")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("solved", justify="right")
    for name in (START, *study.arms):
        interval = arms[name].interval(TASK, "accuracy")
        table.add_row(
            NAMES.get(name, name), f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        )
    terminal = console()
    terminal.print(f"Sudoku 4×4: puzzles solved, % [95 % interval]; {n} test puzzles, {seeds}", highlight=False)
    terminal.print(table)
    settings = ", ".join(f"{key} {value}" for key, value in in_force(arms[START].decoding).items())
    terminal.print(f"[dim]decoding: {settings}[/dim]\n", highlight=False)
    for sentence in sentences:
        terminal.print(sentence, highlight=False)
