"""A task of one's own: sort numbers. It makes its problems, words its prompt, and grades.

remask eval --model runs/sorting --tasks examples/extend/sorting_task.py:Sorting
remask sft --data generated:examples/extend/sorting_task.py:Sorting:2000 --output-dir runs/sorting
remask rl --model runs/sorting --tasks examples/extend/sorting_task.py:Sorting --output-dir runs/sorting-rl
"""

from __future__ import annotations

import random
import re
from typing import Any

from remask.tasks import GeneratedTask, Grade, Problem


class Sorting(GeneratedTask):
    name = "sorting"

    def read(self, row: dict[str, Any]) -> Problem:
        numbers = [int(number) for number in row["numbers"]]
        return Problem(self.name, " ".join(map(str, numbers)), {"numbers": numbers})

    def prompt(self, problem: Problem, style: str) -> str:
        return f"Sort {problem.key}"

    def grade(self, problem: Problem, completion: str) -> Grade:
        """Dense: the share of places that hold the right number."""
        found = re.search(r"<answer>([\d ]+)</answer>", completion)
        if found is None:
            return Grade(False, 0.0, None)
        answer, right = found[1].split(), [str(number) for number in sorted(problem.fields["numbers"])]
        share = sum(a == b for a, b in zip(answer, right, strict=False)) / max(len(answer), len(right))
        return Grade(answer == right, share, found[1])

    def propose(self, rng: random.Random) -> Problem:
        return self.read({"numbers": [rng.randrange(100) for _ in range(rng.randint(3, 5))]})

    def solve(self, problem: Problem, rng: random.Random, *, wrong: bool = False) -> str:
        numbers = sorted(problem.fields["numbers"], reverse=wrong)
        return f"<answer>{' '.join(map(str, numbers))}</answer>"
