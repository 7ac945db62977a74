"""What a task is: one object that reads, prompts and grades the problems of a benchmark. The grade is also the reward.

The published protocol is the default grader. A task that can make problems of its own is a `GeneratedTask`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from remask.chat_template import Message
from remask.choices import PromptStyle
from remask.data.files import Unreadable, read_rows
from remask.errors import UserError
from remask.tasks import form

if TYPE_CHECKING:
    from remask.sandbox import Sandbox


@dataclass(frozen=True)
class Problem:
    """A problem of a task. `key` identifies it up to what makes no difference to its answer; `fields` is what it is
    made of.
    """

    task: str
    key: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Grade:
    """A grade of one answer. `correct` is the yes or no; `score` in [0, 1] is the dense reward; `metrics` are further
    shares in [0, 1].
    """

    correct: bool
    score: float
    answer: str | None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hub:
    """A place on the hub where a benchmark is published: data set id, configuration and split."""

    id: str
    config: str | None = None
    split: str = "test"

    def __str__(self) -> str:
        return f"{self.id}{f':{self.config}' if self.config else ''}@{self.split}"


class Task(ABC):
    """A task is a benchmark: it is everything that training, reinforcement learning and evaluation need of it.

    `metrics` are the keys of every `Grade.metrics`. `published` is the one that published figures report ("accuracy"
    where it is the share of correct answers). `hub` is where the problems are found by default. `runs_code` says that
    grading executes what the model wrote.
    """

    name: str
    metrics: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[str] = "accuracy"
    hub: ClassVar[Hub | None] = None
    runs_code: ClassVar[bool] = False
    sandbox: Sandbox | None = None
    """The sandbox in which a task that runs code runs it."""

    @abstractmethod
    def read(self, row: dict[str, Any]) -> Problem:
        """Return the problem in one row of a published file. Raises KeyError, ValueError or TypeError where
        it is none.
        """

    @abstractmethod
    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        """Return the user's turn, in this task's wording."""

    def turns(self, problem: Problem) -> list[Message] | None:
        """Return the conversation that a problem is, where it is more than one question; None where `prompt` says it
        all.
        """
        return None

    @abstractmethod
    def grade(self, problem: Problem, completion: str) -> Grade:
        """Grade a completion. No text makes it raise an error."""

    def grade_all(
        self, problems: Sequence[Problem], completions: Sequence[str], *, on_done: Callable[[int], None] | None = None
    ) -> list[Grade]:
        """Grade many completions; `on_done(n)` is called with how many are done in all."""
        grades = []
        for problem, completion in zip(problems, completions, strict=True):
            grades.append(self.grade(problem, completion))
            if on_done is not None:
                on_done(len(grades))
        return grades

    def reward(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """Return the dense score of each completion."""
        return [grade.score for grade in self.grade_all(problems, completions)]

    def format(self, problem: Problem, completion: str) -> float:
        """Return how much of the form of an answer a completion keeps, in [0, 1], whatever the answer is worth. No text
        makes it raise an error.

        Where a task does not say otherwise: a quarter for each of the four things asked of a tagged answer.
        """
        return form.share(form.tagged(completion))

    def load(self, source: str | Path | None = None, *, split: str | None = None) -> list[Problem]:
        """Return the problems of a file, a folder in the hub's layout, or (without `source`) of the hub's data set; of
        its published test split, or of the one named.

        Raises UserError naming the file and row that cannot be read.
        """
        if source is None:
            if self.hub is None:
                raise UserError(f"{self.name} has no data set on the hub", mend=f"give {self.name}=FILE")
            source = str(self.hub if split is None else replace(self.hub, split=split))
        published, config = (self.hub.split, self.hub.config) if self.hub else ("test", None)
        return read_problems(source, self.read, split=split or published, config=config)


def fill_template(template: str, problem: Problem) -> str:
    """Fill a user's wording of the prompt: `{question}`, `{numbers}`, … stand for the problem's fields.

    Other braces are left alone, as LaTeX and code need them. Raises UserError where no field is named.
    """
    names = sorted(problem.fields)
    pattern = re.compile("{(" + "|".join(map(re.escape, names)) + ")}")
    if not pattern.search(template):
        raise UserError(
            "the prompt template names none of the problem's fields",
            where=problem.task,
            mend=f"write one of {', '.join('{' + name + '}' for name in names)} in it",
        )
    return pattern.sub(lambda match: str(problem.fields[match[1]]), template)


def answer_text(completion: str) -> str | None:
    """Return what stands in the last `<answer>…</answer>`; an answer left unclosed runs to the end of the text."""
    _, opened, rest = completion.rpartition("<answer>")
    if not opened:
        return None
    return rest.partition("</answer>")[0].strip()


def read_problems(
    source: str | Path, read: Callable[[Any], Problem], *, split: str = "test", config: str | None = None
) -> list[Problem]:
    """Read every row as a problem; whatever goes wrong is an error that names file and row."""
    problems = []
    for where, row in read_rows(source, split=split, config=config):
        try:
            if isinstance(row, Unreadable):
                raise ValueError(row.reason)
            if not isinstance(row, dict):
                raise TypeError(f"a row is a mapping of columns, this is a {type(row).__name__}")
            problems.append(read(row))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"not a problem of this task ({what})", where=where, mend="check the file's format"
            ) from error
    if not problems:
        raise UserError("holds no problems", where=str(source), mend="give a file with one row or more")
    return problems
