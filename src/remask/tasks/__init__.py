"""Benchmarks. `get("sudoku")` gives the task; `TASKS` names them all."""

from __future__ import annotations

from collections.abc import Callable

from remask.errors import UserError
from remask.tasks.base import Grade, Problem, Task
from remask.tasks.countdown import Countdown
from remask.tasks.generator import GeneratedTask, Split
from remask.tasks.sudoku import Sudoku

TASKS: dict[str, Callable[[], Task]] = {"sudoku": Sudoku, "countdown": Countdown}


def get(name: str) -> Task:
    """The task of that name. Raises UserError listing the known ones."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}", mend=f"the tasks are {', '.join(TASKS)}")
    return TASKS[name]()


__all__ = ["TASKS", "Countdown", "GeneratedTask", "Grade", "Problem", "Split", "Sudoku", "Task", "get"]
