"""What a task is: one object that generates, loads, prompts, solves and grades. The grade is also the reward.

A problem belongs to exactly one split by a hash of its `key`, whatever seed made it: training problems can never meet
validation or test problems. Problems of the published test files are recognised by a digest list shipped with the
package and are never generated.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from remask.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PromptStyle = Literal["compact", "instruct"]


@dataclass(frozen=True)
class Problem:
    """One problem. `key` identifies it up to what makes no difference to its answer; `fields` is what it is made of."""

    task: str
    key: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Grade:
    """`correct` is the published yes or no; `score` in [0, 1] is the dense reward; `metrics` are further shares."""

    correct: bool
    score: float
    answer: str | None
    metrics: dict[str, float] = field(default_factory=dict)


def split_of(key: str) -> Split:
    """The split a problem belongs to: 1/16 test, 1/16 validation, the rest training."""
    bucket = hashlib.blake2b(key.encode(), digest_size=1).digest()[0]
    return "test" if bucket < 16 else "validation" if bucket < 32 else "train"


DIGEST_BYTES = 6


def digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()


@cache
def published_digests() -> frozenset[bytes]:
    """Digests of the problems in the published test files (made by `scripts/digest_published.py`)."""
    data = resources.files("remask.tasks").joinpath("published.bin").read_bytes()
    return frozenset(data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES))


class Task(ABC):
    """A benchmark: everything that training, reinforcement learning and evaluation need to know of it."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def propose(self, rng: random.Random) -> Problem:
        """One random problem of this task's generated distribution, of any split."""

    @abstractmethod
    def load(self, path: Path) -> list[Problem]:
        """The problems of a published file. Raises UserError naming the file and row that cannot be read."""

    @abstractmethod
    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        """The user's turn."""

    @abstractmethod
    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        """A worked answer: reasoning, then `<answer>…</answer>`. `wrong` makes a plausible answer that is not right."""

    @abstractmethod
    def grade(self, problem: Problem, completion: str) -> Grade:
        """Grade a completion. Never raises on any text."""

    def generate(self, count: int, *, split: Split, seed: int) -> list[Problem]:
        """`count` distinct problems of a split, the same for the same (task, split, seed), none of them published."""
        return list(islice(self.stream(split=split, seed=seed), count))

    def stream(self, *, split: Split, seed: int) -> Iterator[Problem]:
        """Distinct problems of a split without end (until the task runs out of them: UserError)."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        seen: set[str] = set()
        misses = 0
        while True:
            problem = self.propose(rng)
            if split_of(problem.key) != split or problem.key in seen or digest(problem.key) in published_digests():
                misses += 1
                if misses > 20_000:
                    raise UserError(
                        f"{self.name} has no more distinct {split} problems after {len(seen)}",
                        mend="ask for fewer problems",
                    )
                continue
            misses = 0
            seen.add(problem.key)
            yield problem

    def reward(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
        """The dense score of each completion."""
        return [self.grade(p, c).score for p, c in zip(problems, completions, strict=True)]


def answer_text(completion: str) -> str | None:
    """What stands in the last `<answer>…</answer>`; an answer left unclosed runs to the end of the text."""
    _, opened, rest = completion.rpartition("<answer>")
    if not opened:
        return None
    return rest.partition("</answer>")[0].strip()


def read_text(path: Path) -> str:
    """A published file's text. Raises UserError where it is not there or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"not readable as UTF-8 text ({error})", where=str(path)) from None


def read_json_lines(path: Path, parse: Callable[[Any], Problem]) -> list[Problem]:
    """The problems of a JSONL file; an error names the line, blank ones counted."""
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return read_rows(path, lambda line: parse(json.loads(line)), lines)


def read_rows(path: Path, parse: Callable[[Any], Problem], rows: Sequence[tuple[int, Any]]) -> list[Problem]:
    """Parse numbered rows, turning any failure into an error that names file and row."""
    problems = []
    for number, row in rows:
        try:
            problems.append(parse(row))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"not a problem of this task ({what})", where=f"{path}, row {number}", mend="check the file's format"
            ) from error
    if not problems:
        raise UserError("holds no problems", where=str(path))
    return problems
