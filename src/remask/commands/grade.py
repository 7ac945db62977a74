"""`remask grade TASK FILE…`: stored answers graded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remask.commands.options import console, parse, split_words
from remask.config import GradeConfig
from remask.errors import UserError
from remask.evaluation.arms import ACCURACY
from remask.evaluation.statistics import Interval, mean_interval, wilson
from remask.files import as_json, refuse_unwritable, write_atomically
from remask.progress import progress
from remask.tasks import Grade, Problem, Task
from remask.tasks.benchmark import named
from remask.tasks.code import CodeTask
from remask.tasks.python_code import parse as parse_python
from remask.tasks.samples import is_samples, ks, pass_at_k, read_samples
from remask.tasks.stored import Stored, Weighted, problem_of, published_count, read_stored, regrade

EXAMPLES = """Examples:
  remask grade gsm8k generations.jsonl
  remask grade math500 math_instruct_256_128_*_generations.json --json grades.json
  remask grade sudoku x.json
  remask grade humaneval samples.jsonl --allow-code-execution
  remask grade mbpp_plus=MbppPlus.jsonl.gz samples.jsonl.gz --allow-code-execution

A file is a .jsonl of question, generations and ground_truth, the .json that d1's evaluation writes, a record of
`remask eval`, or samples of a code benchmark: rows of task_id and completion (which goes on after the prompt) or
solution (a whole program), or a folder HumanEval_0/0.py, … The problems of samples are the hub's, or TASK=FILE's.
Several files are scored one by one and together."""


PASS_1 = "pass@1"


@dataclass(frozen=True)
class Graded:
    """A graded source has answers and their grades."""

    source: str
    stored: list[Stored]
    problems: list[Problem]
    grades: list[Grade]
    asked: int | None = None
    """The number of problems of the data set that the samples are of."""

    @property
    def samples(self) -> list[tuple[int, int]]:
        """Return (samples, right ones) of each problem that has any."""
        right: dict[str, list[int]] = {}
        for problem, grade in zip(self.problems, self.grades, strict=True):
            counts = right.setdefault(problem.key, [0, 0])
            counts[0] += 1
            counts[1] += grade.correct
        return [(n, c) for n, c in right.values()]


def run(arguments: Sequence[str]) -> int:
    """Run `remask grade` with these arguments and return the exit code."""
    words, flags = split_words(GradeConfig, arguments)
    config = parse(GradeConfig, flags, command="grade", examples=EXAMPLES, words="TASK FILE...")
    if len(words) < 2:
        raise UserError(
            "no files given" if words else "no task given", mend="remask grade TASK FILE grades its answers"
        )
    task, problems_from = named(words[0])
    refuse_unwritable(config.json)
    _allow_code(task, config)
    graded = _graded(task, problems_from, words[1:], config)
    if len(graded) > 1:
        graded.append(_together(graded))
    scores = [{"source": part.source, **scores_of(task, part)} for part in graded]
    if config.json:
        write_atomically(Path(config.json), as_json(_record(task, scores, graded), indent=1))
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


def _graded(task: Task, problems_from: str | None, paths: Sequence[str], config: GradeConfig) -> list[Graded]:
    """The answers of every file, all read before the first is graded."""
    problems: list[Problem] = []
    answers: list[tuple[str, list[Stored], int | None]] = []
    for path in paths:
        if isinstance(task, CodeTask) and is_samples(path):
            problems = problems or _problems(task, problems_from)
            answers.append((path, read_samples(task, path, problems, find=config.extract), len(problems)))
        else:
            answers.append((path, _answers(task, path), None))
    if problems_from is not None and not problems:
        raise UserError(
            "these answers bring their problems along",
            where=f"{task.name}={problems_from}",
            mend=f"give {task.name} alone",
        )
    graded = []
    for path, stored, asked in answers:
        with progress(f"grading {Path(path).name}", len(stored), enabled=task.runs_code) as tick:
            grades = regrade(task, stored, on_done=tick)
        graded.append(Graded(path, stored, [problem_of(task, one) for one in stored], grades, asked))
    return graded


def _problems(task: Task, source: str | None) -> list[Problem]:
    """The problems that samples are of: a file's, or the hub's data set."""
    try:
        return task.load(source)
    except UserError as error:
        if source is not None:
            raise
        mend = f"give the file that the samples' problems are in: {task.name}=FILE"
        raise UserError(error.what, where=error.where, mend=mend) from None


def _together(graded: Sequence[Graded]) -> Graded:
    stored, problems, grades = (
        [item for part in graded for item in getattr(part, name)] for name in ("stored", "problems", "grades")
    )
    asked = None if any(part.asked is None for part in graded) else graded[0].asked
    return Graded("together", stored, problems, grades, asked)


def _answers(task: Task, path: str) -> list[Stored]:
    """The answers of a file; of a record with several tasks, this one's."""
    stored = [one for one in read_stored(path, task) if one.problem is None or one.problem.task == task.name]
    if not stored:
        raise UserError(f"holds no answers to {task.name}", where=path, mend="name the task that it holds answers to")
    return stored


def scores_of(task: Task, graded: Graded) -> dict[str, Any]:
    """Return every metric with its interval, and of those that are counts, right and all.

    The interval is Wilson's for accuracy, and the bootstrap over problems for shares within problems.
    """
    right = sum(grade.correct for grade in graded.grades)
    accuracy = {"right": right, "of": len(graded.grades), **_interval(wilson(right, len(graded.grades)))}
    metrics = {ACCURACY: accuracy} if graded.asked is None else passes(graded)
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
    scores: dict[str, Any] = {"n": len(graded.grades), "metrics": metrics}
    if graded.asked is not None:
        with_samples = len(graded.samples)
        broken = sum(parse_python(one.source) is None for one in graded.stored if one.source is not None)
        scores["problems"] = {
            "with_samples": with_samples,
            "without": graded.asked - with_samples,
            "not_python": broken,
        }
    return scores


def passes(graded: Graded) -> dict[str, dict[str, Any]]:
    """Return the accuracy of samples, and pass@k: the mean over the problems that have any. With one sample a problem
    the two are the same count, with Wilson's interval; with several the bootstrap's, over problems.
    """
    counts = graded.samples
    samples, right = sum(n for n, _ in counts), sum(c for _, c in counts)
    if samples == len(counts):
        interval = _interval(wilson(right, samples))
        return {name: {"right": right, "of": samples, **interval} for name in (ACCURACY, PASS_1)}
    shares = [c * len(counts) / samples for _, c in counts]
    metrics = {ACCURACY: {"right": right, "of": samples, **_interval(mean_interval(shares))}}
    for k in ks([n for n, _ in counts]):
        metrics[f"pass@{k}"] = _interval(mean_interval([pass_at_k(n, c, k) for n, c in counts]))
    return metrics


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
    """Print a line a metric, the published one first and marked."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"{task.name}, 95 % intervals", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("answers", "metric", "score", "count", "interval"):
        table.add_column(column, justify="left" if column in ("answers", "metric") else "right")
    for block in scores:
        published = PASS_1 if PASS_1 in block["metrics"] else task.published
        ordered = sorted(block["metrics"], key=lambda name: name != published)
        for name in ordered:
            value = block["metrics"][name]
            table.add_row(
                Path(block["source"]).name if name == ordered[0] else "",
                name + (" *" if name == published and len(ordered) > 1 else ""),
                f"{100 * value['mean']:.1f} %",
                f"{value['right']}/{value['of']}" if "right" in value else "",
                f"{100 * value['low']:.1f} – {100 * value['high']:.1f}",
            )
    terminal = console()
    terminal.print(table)
    for block in scores:
        for line in notes(block):
            terminal.print(line, highlight=False)
    if task.metrics:
        terminal.print("[dim]* what published figures report[/dim]", highlight=False)


def notes(block: dict[str, Any]) -> list[str]:
    """Return notes on samples that a reader needs beside their scores."""
    if "problems" not in block:
        return []
    problems, source = block["problems"], Path(block["source"]).name
    with_samples, without = problems["with_samples"], problems["without"]
    lines = [f"{source}: {block['n']} samples, of {with_samples} of {with_samples + without} problems"]
    if without:
        lines[0] += f"; the {without} problems without a sample are left out of the mean"
    if problems["not_python"]:
        lines.append(
            f"{source}: {problems['not_python']} samples are not Python as they stand, which fails them; where samples "
            "are a model's whole answers, --extract finds the code in them"
        )
    return lines
