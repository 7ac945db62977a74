"""`remask grade TASK FILE…`: stored answers graded again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remask.commands.options import console, parse, split_words
from remask.config import GradeConfig
from remask.errors import UserError
from remask.evaluation.arms import ACCURACY
from remask.evaluation.statistics import Interval, mean_interval, wilson
from remask.files import refuse_unwritable, write_atomically
from remask.tasks import Grade, Problem, Task, get
from remask.tasks.stored import Stored, Weighted, problem_of, published_count, read_stored, regrade

EXAMPLES = """Examples:
  remask grade gsm8k generations.jsonl
  remask grade math500 math_instruct_256_128_*_generations.json --json grades.json
  remask grade sudoku x.json

A file is a .jsonl of question, generations and ground_truth, the .json that d1's evaluation writes, or a record of
`remask eval`. Several files are scored one by one and together."""


@dataclass(frozen=True)
class Graded:
    """Answers of one source and their grades."""

    source: str
    stored: list[Stored]
    problems: list[Problem]
    grades: list[Grade]


def run(arguments: Sequence[str]) -> int:
    words, flags = split_words(GradeConfig, arguments)
    config = parse(GradeConfig, flags, command="grade", examples=EXAMPLES, words="TASK FILE...")
    if len(words) < 2:
        raise UserError(
            "no files given" if words else "no task given", mend="remask grade TASK FILE grades its answers"
        )
    task = get(words[0])
    refuse_unwritable(config.json)
    _allow_code(task, config)
    answers = [(word, _answers(task, word)) for word in words[1:]]
    graded = [
        Graded(source, stored, [problem_of(task, one) for one in stored], regrade(task, stored))
        for source, stored in answers
    ]
    if len(graded) > 1:
        parts = [[item for part in graded for item in getattr(part, name)] for name in ("stored", "problems", "grades")]
        graded.append(Graded("together", *parts))
    scores = [{"source": part.source, **scores_of(task, part)} for part in graded]
    if config.json:
        write_atomically(Path(config.json), json.dumps(_record(task, scores, graded), indent=1))
        print(f"written to {config.json}")
    show(task, scores)
    return 0


def _allow_code(task: Task, config: GradeConfig) -> None:
    if not task.runs_code:
        return
    if not config.allow_code_execution:
        raise UserError(
            f"{task.name} runs the code that the model wrote, which is off",
            mend="allow it, in a sandbox, with --allow-code-execution",
        )
    from remask.sandbox import Sandbox

    sandbox = Sandbox()
    sandbox.check()
    task.sandbox = sandbox


def _answers(task: Task, path: str) -> list[Stored]:
    """The answers of a file; of a record with several tasks, this one's."""
    stored = [one for one in read_stored(path) if one.problem is None or one.problem.task == task.name]
    if not stored:
        raise UserError(f"holds no answers to {task.name}", where=path)
    return stored


def scores_of(task: Task, graded: Graded) -> dict[str, Any]:
    """Every metric with its interval, and of those that are counts, right and all.

    Wilson's interval for accuracy; for shares within problems, the bootstrap over problems.
    """
    right = sum(grade.correct for grade in graded.grades)
    metrics = {ACCURACY: {"right": right, "of": len(graded.grades), **_interval(wilson(right, len(graded.grades)))}}
    for name in task.metrics:
        values = [grade.metrics[name] for grade in graded.grades]
        count = {}
        if name == task.published and isinstance(task, Weighted):
            right, of = published_count(task, graded.problems, graded.grades)
            count = {"right": right, "of": of}
            weights = [task.weight(problem) for problem in graded.problems]
            mean = of / len(weights)
            values = [value * weight / mean for value, weight in zip(values, weights, strict=True)] if of else values
        metrics[name] = {**count, **_interval(mean_interval(values))}
    return {"n": len(graded.grades), "metrics": metrics}


def _interval(interval: Interval) -> dict[str, float]:
    return {key: value for key, value in asdict(interval).items() if key != "n"}


def _record(task: Task, scores: list[dict[str, Any]], graded: list[Graded]) -> dict[str, Any]:
    files = graded[: max(1, len(graded) - 1)]
    return {
        "kind": "remask.grades",
        "task": task.name,
        "published_metric": task.published,
        "scores": scores,
        "answers": [
            {"where": one.where, **asdict(grade)}
            for part in files
            for one, grade in zip(part.stored, part.grades, strict=True)
        ],
    }


def show(task: Task, scores: Sequence[dict[str, Any]]) -> None:
    """A line a metric, the published one first and marked."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"{task.name}, 95 % intervals", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("answers", "metric", "score", "count", "interval"):
        table.add_column(column, justify="left" if column in ("answers", "metric") else "right")
    for block in scores:
        ordered = sorted(block["metrics"], key=lambda name: name != task.published)
        for name in ordered:
            value = block["metrics"][name]
            table.add_row(
                Path(block["source"]).name if name == ordered[0] else "",
                name + (" *" if name == task.published and len(ordered) > 1 else ""),
                f"{100 * value['mean']:.1f} %",
                f"{value['right']}/{value['of']}" if "right" in value else "",
                f"{100 * value['low']:.1f} – {100 * value['high']:.1f}",
            )
    terminal = console()
    terminal.print(table)
    if task.metrics:
        terminal.print("[dim]* what published figures report[/dim]", highlight=False)
