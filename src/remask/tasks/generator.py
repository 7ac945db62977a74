"""Tasks that make problems without end, and keep training, validation and test apart.

A problem belongs to exactly one split by a hash of its `key`, whatever seed made it: training problems can never meet
validation or test problems. Problems of the published test files are recognised by a digest list shipped with the
package and are never generated.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import islice

from remask.choices import Split
from remask.errors import UserError
from remask.tasks.base import Problem, Task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DIGEST_BYTES = 6


def split_of(key: str) -> Split:
    """Return the split a problem belongs to: 1/16 test, 1/16 validation, the rest training."""
    bucket = hashlib.blake2b(key.encode(), digest_size=1).digest()[0]
    return "test" if bucket < 16 else "validation" if bucket < 32 else "train"


def digest(key: str) -> bytes:
    """Return a digest of a problem's key."""
    return hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()


@cache
def published_digests() -> frozenset[bytes]:
    """Return digests of the problems in the published test files (made by `scripts/digest_published.py`)."""
    data = resources.files("remask.tasks").joinpath("published.bin").read_bytes()
    return frozenset(data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES))


class GeneratedTask(Task):
    """A task that can draw random problems and write worked answers to train on.

    `made_by` is the package that makes the problems, with its version, for records; None where it is Remask.
    """

    made_by: str | None = None

    @abstractmethod
    def propose(self, rng: random.Random) -> Problem:
        """Draw one random problem of this task's generated distribution, of any split."""

    def proposals(self, rng: random.Random) -> Iterator[Problem]:
        """Yield random problems of any split, again and again, without end."""
        while True:
            yield self.propose(rng)

    @abstractmethod
    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        """Write a worked answer: reasoning, then `<answer>…</answer>`. `wrong` makes a plausible answer that is not
        right.
        """

    def without_work(self, worked: str) -> str:
        """Return the answer of a worked one alone: its tag and what is in it."""
        return worked[worked.index("<answer>") :]

    def generate(self, count: int, *, split: Split, seed: int) -> list[Problem]:
        """Return `count` distinct problems of a split, the same for the same (task, split, seed), none of them
        published.
        """
        return list(islice(self.stream(split=split, seed=seed), count))

    def stream(self, *, split: Split, seed: int) -> Iterator[Problem]:
        """Yield distinct problems of a split without end. Raises UserError when the task has no further ones."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        seen: set[str] = set()
        misses = 0
        for problem in self.proposals(rng):
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
