"""Tasks of the package reasoning-gym: its data sets make the problems, and its verifiers score the answers.

`gym:NAME` is the data set that the package registers under that name, `gym:NAME{key:value;key:value}` the same with
settings of its configuration. Problems and scores come from processes of their own (`worker_process.py`), which makes
problems the same whatever Python's hash seed is, and grading safe from what an answer makes a verifier do.

A problem belongs to the split that the hash of its question decides, whatever the settings, the seed and the package's
version; which problems a seed gives is the version's.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from remask.choices import PromptStyle
from remask.environment import versions
from remask.errors import UserError, first_line
from remask.tasks.base import Grade, Problem, answer_text
from remask.tasks.generator import GeneratedTask, digest
from remask.tasks.worker import LONGEST, Worker

GYM = "gym:"
PACKAGE = "reasoning-gym"
FORM = re.compile(r"gym:(?P<data_set>[^{}]+)(?:\{(?P<settings>[^{}]*)\})?")
FIXED = ("seed", "size")
"""The settings that are not the user's: the source says how many problems, and with which seed."""
LOT = 500
"""The problems drawn with one seed of the package's, which is its own default."""
AT_A_TIME = 10
FAILED_LOTS = 3


class Scorer(Worker):
    """A scorer asks the package's verifiers. An answer that uses up its `seconds` or its `patience` scores 0."""

    kind = "gym-score"

    def missing(self) -> UserError:
        return not_installed()


class Maker(Worker):
    """A maker asks the package for problems."""

    kind = "gym-problems"

    def missing(self) -> UserError:
        return not_installed()


SCORER, MAKER = Scorer(seconds=5.0, patience=60.0), Maker(seconds=0.0, patience=600.0)


class Gym(GeneratedTask):
    """A task of reasoning-gym's. `score` is the package's verifier's, and an answer is correct where that is 1.

    The answer is what stands in the last `<answer>…</answer>`; without one the verifier is asked about no answer.
    """

    metrics = ("score",)

    def __init__(self, data_set: str, settings: dict[str, Any]) -> None:
        self.data_set, self.settings = data_set, settings
        written = ";".join(f"{key}:{json.dumps(value).strip(chr(34))}" for key, value in sorted(settings.items()))
        self.name = f"{GYM}{data_set}{f'{{{written}}}' if written else ''}"
        self.made_by = package()

    @classmethod
    def named(cls, text: str) -> Gym:
        """Return the task of `gym:NAME` or `gym:NAME{key:value;…}`.

        Raises UserError where the package is not installed, has no such data set, or does not take the settings.
        """
        found = FORM.fullmatch(text)
        if found is None:
            raise UserError(f"{text!r} names no task", mend="write gym:NAME or gym:NAME{key:value;key:value}")
        name = found["data_set"]
        defaults = _defaults(name)
        parts = [part.strip() for part in (found["settings"] or "").split(";") if part.strip()]
        settings = dict(_setting(text, part, defaults) for part in parts)
        _check(text, name, settings)
        return cls(name, settings)

    def proposals(self, rng: random.Random) -> Iterator[Problem]:
        failed = 0
        while True:
            seed, count = rng.getrandbits(31), 0
            for first in range(0, LOT, AT_A_TIME):
                drawn = MAKER.ask(self.data_set, json.dumps(self.settings), seed, first, first + AT_A_TIME) or []
                for question, answer, about in drawn:
                    count += 1
                    yield self.problem(question, answer, about)
            failed = 0 if count else failed + 1
            if failed == FAILED_LOTS:
                raise UserError(f"{self.made_by} fails to make problems", where=self.name, mend="name another task")

    def propose(self, rng: random.Random) -> Problem:
        return next(self.proposals(rng))

    def problem(self, question: str, answer: str | None, about: str) -> Problem:
        """Return the problem of a question, a reference answer (None: the verifier needs none), and JSON of what the
        verifier reads.
        """
        key = f"{GYM}{self.data_set}:{digest(question).hex()}"
        return Problem(self.name, key, {"question": question, "answer": answer, "metadata": about})

    def read(self, row: dict[str, Any]) -> Problem:
        """Read the package's columns: question, answer, metadata (a mapping, or its JSON)."""
        question, answer, about = row["question"], row["answer"], row["metadata"]
        if not isinstance(question, str) or not isinstance(answer, (str, type(None))):
            raise TypeError("question and answer are not texts")
        return self.problem(question, answer, about if isinstance(about, str) else json.dumps(about))

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        question = str(problem.fields["question"]).strip()
        if style == "compact":
            return question
        return f"{question}\n\nThink first, then write the answer inside <answer></answer>."

    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        """Write the package's answer, after its work where it has some, as gsm_symbolic does.

        Raises UserError for a wrong answer, or where the problems come without answers.
        """
        if wrong:
            raise UserError(f"{self.name} makes no wrong answers", mend="give a file of pairs")
        answer = problem.fields["answer"]
        if answer is None:
            raise UserError(
                f"the problems of {self.name} come without an answer: there is nothing to train on",
                mend="use it with remask rl or remask eval, which need its verifier only",
            )
        work = json.loads(problem.fields["metadata"]).get("answer_cot")
        lines = "" if work is None else work.partition("\n####")[0].strip() + "\n"
        return f"{lines}<answer>{answer}</answer>"

    def grade(self, problem: Problem, completion: str) -> Grade:
        answer = answer_text(completion)
        fields = [problem.fields[name] for name in ("question", "answer", "metadata")]
        said = None if answer is None else answer[:LONGEST]
        score = float(SCORER.ask(self.data_set, json.dumps(self.settings), *fields, said) or 0.0)
        score = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        return Grade(score == 1.0, score, answer, {"score": score})


def package() -> str:
    """Return the package's name and version."""
    return f"{PACKAGE} {versions().get(PACKAGE, 'not installed')}"


def not_installed() -> UserError:
    """Return the error where the package is not installed, or cannot be imported."""
    return UserError("tasks named gym:… need the package reasoning-gym", mend="pip install 'remask[gym]'")


@cache
def data_sets() -> dict[str, Any]:
    """Return the configuration class of each data set that the package registers. Raises UserError where it is not
    installed.
    """
    try:
        import reasoning_gym  # noqa: F401
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise not_installed() from None
    return {name: config for name, (_, config) in DATASETS.items()}


def _defaults(name: str) -> dict[str, Any]:
    """The settings that a data set has, with their defaults."""
    known = data_sets()
    if name not in known:
        close = [one for one in known if name in one] or difflib.get_close_matches(name, known, n=4)
        raise UserError(
            f"{package()} has no data set {name!r}",
            mend=f"did you mean {', '.join(close)}?" if close else f"its data sets are {', '.join(sorted(known))}",
        )
    return {field.name: field.default for field in dataclasses.fields(known[name]) if field.name not in FIXED}


def _setting(text: str, part: str, defaults: dict[str, Any]) -> tuple[str, Any]:
    """The key and the value of `key:value`, in the type of the default."""
    key, colon, said = (piece.strip() for piece in part.partition(":"))
    scalars = [name for name, default in defaults.items() if isinstance(default, (bool, int, float, str))]
    if not colon or key not in scalars:
        what = f"{key} takes no single value" if key in defaults else f"there is no setting {key!r}"
        settings = f"its settings are {', '.join(scalars)}" if scalars else "it has no settings"
        raise UserError(what, where=text, mend=f"{settings}, written key:value")
    kind = type(defaults[key])
    if kind is bool and said in ("true", "false"):
        return key, said == "true"
    try:
        if kind is bool:
            raise ValueError(said)
        return key, kind(said)
    except ValueError:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{key} is {said!r}", where=text, mend=f"give {expected}") from None


def _check(text: str, name: str, settings: dict[str, Any]) -> None:
    """Raises UserError where the package refuses the settings."""
    try:
        config = data_sets()[name](**settings)
        if hasattr(config, "validate"):
            config.validate()
    except Exception as error:
        raise UserError(
            f"{PACKAGE} refuses its settings ({first_line(error)})", where=text, mend="give others, or another task"
        ) from None
