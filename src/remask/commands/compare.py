"""`remask compare A B`: are two arms different, or is it noise?"""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from remask.commands.options import console, parse, print_json, split_words
from remask.errors import UserError
from remask.evaluation.arms import Arm, load_evaluation, pool
from remask.evaluation.compare import TaskComparison, compare_arms, told_apart, unshared
from remask.evaluation.nats import LEAST_ROWS, ClassComparison, compare_nats
from remask.report.words import p_value, plural

EXAMPLES = """Examples:
  remask compare sft.json gift.json
  remask compare "runs/sft-*/eval.json" "runs/gift-*/eval.json" --start start.json

A side is one evaluation file, several joined by commas, or a pattern: the training seeds of one arm.
The difference is B − A, paired by problem and seed."""

MOST = 10.0
"""The largest relative gain that is shown: ten times what it is measured by."""


@dataclass(frozen=True)
class CompareConfig:
    """Compare two evaluations, with a paired bootstrap over problems and seeds."""

    start: str | None = None
    """The starting model's evaluation, for the gain over the baseline's own gain."""
    allow_different_decoding: bool = False
    """Compare although the two sides were decoded differently."""
    json: bool = False
    """Print JSON on stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask compare` with these arguments and return the exit code."""
    words, flags = split_words(CompareConfig, arguments)
    config = parse(CompareConfig, flags, command="compare", examples=EXAMPLES, words="A B")
    if len(words) != 2:
        raise UserError(f"expected two sides to compare, got {len(words)}", mend="write remask compare A.json B.json")
    baseline, candidate = (side(word) for word in words)
    start = side(config.start) if config.start else None
    found = compare_arms(baseline, candidate, start, allow_different_decoding=config.allow_different_decoding)
    read = {c.task: compare_nats(baseline, candidate, c.task) for c in found if c.leads}
    names, alone = told_apart(baseline, candidate), unshared(baseline, candidate)
    for name, tasks in zip(names, alone, strict=True):
        if tasks:
            print(f"{name} alone has {', '.join(tasks)}: left out", file=sys.stderr)
    if config.json:
        print_json(
            {
                "baseline": names[0],
                "candidate": names[1],
                "only_baseline": alone[0],
                "only_candidate": alone[1],
                "comparisons": [asdict(comparison) for comparison in found],
                "nats_per_token": {task: [asdict(c) for c in classes] for task, classes in read.items() if classes},
            }
        )
    else:
        show(found, *names)
        for task, classes in read.items():
            if classes:
                show_nats(task, classes, *names)
            elif classes is None:
                print(f"{task}: the two cut the answers into other tokens: nats a token are left out", file=sys.stderr)
    return 0


def side(text: str) -> Arm:
    """Return one arm from files joined by commas, or patterns."""
    paths = [path for part in text.split(",") for path in (sorted(glob.glob(part)) or [part])]
    arms = pool(load_evaluation(Path(path)) for path in paths)
    if len(arms) != 1:
        raise UserError(f"holds several arms: {', '.join(arms)}", where=text, mend="give the files of one arm a side")
    return next(iter(arms.values()))


def show(found: Sequence[TaskComparison], baseline: str, candidate: str) -> None:
    """Print a table of the two arms and their difference, then what may be said of each task."""
    rows = [
        (
            c.task,
            c.metric,
            f"{100 * c.baseline.mean:.1f} [{100 * c.baseline.low:.1f}, {100 * c.baseline.high:.1f}]",
            f"{100 * c.candidate.mean:.1f} [{100 * c.candidate.low:.1f}, {100 * c.candidate.high:.1f}]",
            f"{100 * c.difference.mean:+.1f} [{100 * c.difference.low:+.1f}, {100 * c.difference.high:+.1f}]",
            p_value(c.difference.p_value),
        )
        for c in found
    ]
    heads = ("task", "metric", baseline, candidate, "difference", "p")
    _print_table(f"{candidate} against {baseline}, % [95 % interval]", heads, rows, words=2)
    for c in found:
        if c.leads:
            console().print(verdict(c, baseline, candidate), highlight=False)


def show_nats(task: str, classes: Sequence[ClassComparison], baseline: str, candidate: str) -> None:
    """Print what the two arms make of the answers that they read, over all tokens and class by class."""
    rows = [
        (
            c.name,
            f"{c.tokens:,}",
            f"{c.rows:,}",
            f"{c.baseline.mean:.3f}",
            f"{c.candidate.mean:.3f}",
            f"{c.difference.mean:+.3f} [{c.difference.low:+.3f}, {c.difference.high:+.3f}]",
            p_value(c.p_holm),
        )
        for c in classes
    ]
    heads = ("class", "tokens", "rows", baseline, candidate, "difference", "p")
    _print_table(f"{task}: at most so many nats a token, fewer are better [95 %]", heads, rows, words=1)
    said = f"p of a class is corrected for their number (Holm); classes in fewer than {LEAST_ROWS} rows are left out"
    console().print(f"[dim]{said}[/dim]", highlight=False)


def _print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> None:
    """Print a table whose first columns are words and the others figures. A long head is broken, a cell never."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(heads):
        widest = max(len(row[i]) for row in rows)
        table.add_column(Text(head), justify="left" if i < words else "right", overflow="fold", min_width=widest)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def verdict(c: TaskComparison, baseline: str, candidate: str) -> str:
    """Return what may be said of one task's accuracy. A gain is given in both meanings, over the baseline's score and
    over the baseline's gain on the starting model, and only where there is one. A gain of more than `MOST` times what
    it is measured by is left out: that is close to 0, and the figure would say nothing.
    """
    size = f"n = {c.difference.n}, {plural(c.difference.seeds, 'seed')}"
    if not c.difference.found:
        return f"{c.task}: no difference found ({size})."
    better, worse = (candidate, baseline) if c.difference.mean > 0 else (baseline, candidate)
    said = f"{c.task}: {better} is better than {worse} by {100 * abs(c.difference.mean):.1f} points ({size})"
    gains = [
        f"{100 * value:+.1f} % of {what}"
        for value, what in (
            (c.gain.over_score, f"{baseline}'s score"),
            (c.gain.over_delta, f"{baseline}'s gain over the start"),
        )
        if value is not None and abs(value) <= MOST
    ]
    return f"{said}: {', '.join(gains)}." if gains else f"{said}."
