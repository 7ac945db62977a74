"""Answers to be scored, and what reward functions are given of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from remask.tasks.base import Grade, Problem, Task


@dataclass(frozen=True)
class Completion:
    """A completion is one answer and what reward functions may use of it.

    tokens: the number of the text's tokens, the stop token included. ended: the answer ended before the canvas was
    full. columns: the problem's fields, or the further columns of a row of data. task and problem: given where it
    answers a task's problem.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool
    columns: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class Batch:
    """A batch holds completions scored together, and the names of the columns that functions are given of them."""

    completions: Sequence[Completion]
    names: tuple[str, ...] = ()

    @cached_property
    def grades(self) -> list[Grade | None]:
        """Return the grade of every answer to a problem, None for other answers. There is one call a task, so that
        programs run at once.
        """
        grades: list[Grade | None] = [None] * len(self.completions)
        places: dict[int, list[int]] = {}
        for place, one in enumerate(self.completions):
            if one.task is not None and one.problem is not None:
                places.setdefault(id(one.task), []).append(place)
        for of_task in places.values():
            asked = [self.completions[place] for place in of_task]
            task = asked[0].task
            assert task is not None
            problems = [one.problem for one in asked if one.problem is not None]
            for place, grade in zip(of_task, task.grade_all(problems, [one.text for one in asked]), strict=True):
                grades[place] = grade
        return grades

    def columns(self) -> dict[str, list[Any]]:
        """Return what a user's function is given, by name. The four built-in columns replace a column of the
        same name.
        """
        own: dict[str, list[Any]] = {
            "prompts": [one.prompt for one in self.completions],
            "completions": [one.text for one in self.completions],
            "tokens": [one.tokens for one in self.completions],
            "ended": [one.ended for one in self.completions],
        }
        return {name: [one.columns.get(name) for one in self.completions] for name in self.names} | own

    def one_by_one(self) -> Iterator[Batch]:
        """Yield each completion as a batch of one."""
        return (Batch([one], self.names) for one in self.completions)
