"""Benchmarks. `get("sudoku")` gives the task; `TASKS` names them all."""

from __future__ import annotations

from collections.abc import Callable

from remask.errors import UserError
from remask.own_code import is_own
from remask.tasks import own
from remask.tasks.base import Grade, Problem, Task
from remask.tasks.code import HumanEval, Mbpp
from remask.tasks.code_plus import HumanEvalPlus, MbppPlus
from remask.tasks.countdown import Countdown, Countdown4, Countdown5
from remask.tasks.generator import GeneratedTask
from remask.tasks.gsm8k import Gsm8k
from remask.tasks.gym import GYM, Gym
from remask.tasks.match import Match, MatchExact, MatchNumeric, MatchRegex
from remask.tasks.math500 import Math, Math500
from remask.tasks.sudoku import Sudoku

TASKS: dict[str, Callable[[], Task]] = {
    "sudoku": Sudoku,
    "countdown": Countdown,
    "countdown4": Countdown4,
    "countdown5": Countdown5,
    "gsm8k": Gsm8k,
    "math": Math,
    "math500": Math500,
    "humaneval": HumanEval,
    "humaneval_plus": HumanEvalPlus,
    "mbpp": Mbpp,
    "mbpp_plus": MbppPlus,
    "match": Match,
    "match_exact": MatchExact,
    "match_numeric": MatchNumeric,
    "match_regex": MatchRegex,
}


def get(name: str) -> Task:
    """Return the task of that name, of a data set of reasoning-gym's (`gym:NAME`), or a user's (`file.py:Class`).

    Raises UserError listing the names there are.
    """
    if is_own(name):
        task = own.load(name)
        if task.name in TASKS:
            raise UserError(
                f"its name {task.name!r} is that of a task of Remask's", where=name, mend="give another name"
            )
        return task
    if name.startswith(GYM):
        return Gym.named(name)
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}", mend=f"the tasks are {', '.join(TASKS)}, gym:NAME and file.py:Class")
    return TASKS[name]()


__all__ = [
    "TASKS",
    "Countdown",
    "Countdown4",
    "Countdown5",
    "GeneratedTask",
    "Grade",
    "Gsm8k",
    "Gym",
    "HumanEval",
    "HumanEvalPlus",
    "Match",
    "MatchExact",
    "MatchNumeric",
    "MatchRegex",
    "Math",
    "Math500",
    "Mbpp",
    "MbppPlus",
    "Problem",
    "Sudoku",
    "Task",
    "get",
]
