"""Answers on file, graded again: d1's generations and Remask's own evaluation records; samples are `samples`'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from remask.data.files import Unreadable, read_rows
from remask.errors import UserError
from remask.files import from_json
from remask.tasks.base import Grade, Problem, Task
from remask.tasks.code import CodeTask


@dataclass(frozen=True)
class Stored:
    """A stored answer and where it stands. d1 keeps question and ground truth; Remask's records keep the problem."""

    where: str
    completion: str
    question: str = ""
    ground_truth: Any = None
    problem: Problem | None = None
    source: str | None = None
    """The whole program of a sample, which is graded as it stands."""


@runtime_checkable
class FromStored(Protocol):
    """A task that can make a problem of d1's question and ground truth."""

    def from_stored(self, question: str, ground_truth: Any) -> Problem:
        """Return the problem. Raises ValueError, TypeError or KeyError where question and ground truth are not of this
        task.
        """


@runtime_checkable
class Weighted(Protocol):
    """A task whose published figure counts parts of problems: each problem as many as its weight."""

    def weight(self, problem: Problem) -> int:
        """Return the number of parts that a problem counts as."""


D1_ROWS = "a row has question, generations and ground_truth"
RECORD = "a record of `remask eval` (.json)"
SAMPLE_ROWS = "a row has task_id and either completion (it goes on after the prompt) or solution (a whole program)"


def forms(task: Task | None) -> str:
    """Return the forms of stored answers that a task reads, in words."""
    if task is None:
        return f"{D1_ROWS}; or give {RECORD}"
    rows = [D1_ROWS] if isinstance(task, FromStored) else [SAMPLE_ROWS] if isinstance(task, CodeTask) else []
    return "; or ".join([*rows, f"give {RECORD}"])


def read_stored(path: str | Path, task: Task | None = None) -> list[Stored]:
    """Return every answer of a file, in its order. Raises UserError naming the file and row that cannot be read, and
    the forms that the task reads.

    A file is a .jsonl of rows with `question`, `generations` and `ground_truth`, the .json that d1 writes (the rows are
    its `generations`), or a record of `remask eval`, with all its tasks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", where=str(path), mend="check its path")
    stored = (
        _of_json(path, task)
        if path.suffix == ".json"
        else [_of_row(row, where, task) for where, row in read_rows(path)]
    )
    if not stored:
        raise UserError("holds no answers", where=str(path), mend="give a file with one answer or more")
    return stored


def problem_of(task: Task, stored: Stored) -> Problem:
    """Return the problem that an answer is to. Raises UserError where it is none of this task."""
    if stored.problem is not None:
        if stored.problem.task != task.name:
            raise UserError(
                f"answers a problem of {stored.problem.task}",
                where=stored.where,
                mend="grade it as an answer to that task",
            )
        return stored.problem
    if not isinstance(task, FromStored):
        raise UserError(f"{task.name} has no answers in this form", where=stored.where, mend=forms(task))
    try:
        return task.from_stored(stored.question, stored.ground_truth)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"not an answer to a problem of {task.name} ({error})", where=stored.where, mend="check task and file"
        ) from error


def regrade(task: Task, stored: Sequence[Stored], *, on_done: Callable[[int], None] | None = None) -> list[Grade]:
    """Return the task's grade of each answer; of samples, of each program as it stands."""
    problems = [problem_of(task, one) for one in stored]
    sources = [one.source for one in stored if one.source is not None]
    try:
        if sources and isinstance(task, CodeTask):
            return task.grade_sources(problems, sources, on_done=on_done)
        return task.grade_all(problems, [one.completion for one in stored], on_done=on_done)
    except KeyError as error:
        where = stored[0].where
        raise UserError(f"a problem of {task.name} has no {error}", where=where, mend="evaluate again") from error


def published_count(task: Task, problems: Sequence[Problem], grades: Sequence[Grade]) -> tuple[int, int]:
    """Return (right, all), whose quotient is the published figure: problems, or parts of them for a `Weighted` task."""
    if not isinstance(task, Weighted):
        return sum(grade.correct for grade in grades), len(grades)
    weights = [task.weight(problem) for problem in problems]
    right = sum(round(g.metrics[task.published] * weight) for g, weight in zip(grades, weights, strict=True))
    return right, sum(weights)


def _of_json(path: Path, task: Task | None) -> list[Stored]:
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"not readable as JSON ({error})", where=str(path), mend="correct it, or write it again"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("tasks"), dict):
        return _of_record(content["tasks"], path)
    rows = content.get("generations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError("holds no answers in a form that is known", where=str(path), mend=forms(task))
    return [_of_row(row, f"{path}, row {number}", task) for number, row in enumerate(rows, 1)]


def _of_row(row: Any, where: str, task: Task | None) -> Stored:
    if isinstance(row, Unreadable):
        raise UserError(row.reason, where=where, mend="correct it there")
    try:
        question, completion, ground_truth = row["question"], row["generations"], row["ground_truth"]
    except (KeyError, TypeError):
        raise UserError("is no stored answer", where=where, mend=forms(task)) from None
    if not isinstance(question, str) or not isinstance(completion, str):
        raise UserError("question and generations are not texts", where=where, mend="write both as text")
    return Stored(where, completion, question, ground_truth)


def _of_record(tasks: dict[str, Any], path: Path) -> list[Stored]:
    stored = []
    for name, block in tasks.items():
        try:
            for number, answer in enumerate(block["problems"], 1):
                fields, completion = from_json(answer["reference"]), answer["completion"]
                if not isinstance(fields, dict) or not isinstance(completion, str):
                    raise TypeError(f"problem {number} is not whole")
                problem = Problem(name, str(answer["id"]), fields)
                stored.append(Stored(f"{path}, {name} {number}", completion, problem=problem))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"is not a whole evaluation ({error!r})", where=str(path), mend="evaluate again") from None
    return stored
