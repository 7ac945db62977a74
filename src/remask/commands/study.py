"""`remask study`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from remask import config as configs
from remask.commands.ending import leaving_on_sigterm
from remask.commands.options import console, parse, split_words
from remask.config import StudyConfig
from remask.environment import command
from remask.errors import UserError
from remask.files import refuse_unwritable_folder
from remask.progress import duration

EXAMPLES = """Examples:
  remask study recipes/studies/gift_vs_sft.yaml
  remask study recipes/studies/gift_vs_sft.yaml --processes 2 --seeds 0 1
  remask study recipes/studies/gift_vs_sft.yaml --dry-run        # what would be run

What is done is not done again: stop and start as you like, change an arm and only its cells are run."""


@dataclass(frozen=True)
class StudyOptions:
    """Run a grid of trainings and evaluations from a YAML file; write tables, a figure and a report."""

    output_dir: str = "studies"
    """Results go to OUTPUT_DIR/NAME, the runs to OUTPUT_DIR/cells, which studies share."""
    processes: int = 1
    """The number of jobs at a time."""
    seeds: tuple[int, ...] = ()
    """The training seeds, instead of the file's."""
    dry_run: bool = False
    """List the jobs, and which of them are done; run none."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask study` with these arguments and return the exit code."""
    words, flags = split_words(StudyOptions, arguments)
    options = parse(StudyOptions, flags, command="study", examples=EXAMPLES, words="STUDY.yaml")
    if len(words) != 1:
        raise UserError(
            f"expected one study, a YAML file, got {len(words)}", mend="remask study recipes/studies/gift_vs_sft.yaml"
        )
    if options.processes < 1:
        raise UserError(f"processes = {options.processes}", mend="give 1 or more")
    study = configs.load(StudyConfig, words[0])
    if options.seeds:
        study = replace(study, seeds=options.seeds)
    return carry_out(study, Path(words[0]).stem, words[0], options)


def carry_out(study: StudyConfig, name: str, where: str, options: StudyOptions) -> int:
    """Run what is missing, then write and show the results."""
    from remask.study.grid import cells
    from remask.study.pages import answer, write_all
    from remask.study.results import collect
    from remask.study.schedule import run_all
    from remask.study.work import is_done

    started = time.perf_counter()
    folder, results = Path(options.output_dir) / "cells", Path(options.output_dir) / name
    grid = cells(study, where)
    refuse_unwritable_folder(folder)
    refuse_unwritable_folder(results)
    if options.dry_run:
        for cell in grid:
            at = "".join(f" {axis}={level}" for axis, level in cell.levels)
            jobs = ", ".join(
                f"{j.name} ({'done' if is_done(folder, j.name) else 'to do'})" for j in cell.evaluation.chain()
            )
            print(f"{cell.arm}{at} seed {cell.seed}: {jobs}")
        return 0
    try:
        with leaving_on_sigterm():
            run_all(grid, folder, options.processes)
    except KeyboardInterrupt:
        print("\nwhat is done is kept: the same command goes on from there", file=sys.stderr)
        raise
    found = collect(study, grid, folder)
    files = write_all(study, name, found, results, shlex.join(command()))
    for sentence in answer(study, found):
        console().print(sentence, highlight=False)
    print(f"\n{files['html']}  ({duration(time.perf_counter() - started)})")
    return 0
