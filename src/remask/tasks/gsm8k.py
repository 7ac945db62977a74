r"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al. 2021, arXiv:2110.14168).

Graded as d1 does. The answer is the first number in the first `\boxed{…}` that holds one, else the last number in the
first `<answer>…</answer>`; it must equal the reference as a float. A comma ends a number, so `\boxed{1,234}` is 1: the
prompt asks for none.
"""

from __future__ import annotations

import math
import re
from typing import Any

from remask.choices import PromptStyle
from remask.tasks import form
from remask.tasks.base import Grade, Hub, Problem, Task
from remask.tasks.extraction import boxes, first_answer, format_score
from remask.tasks.generator import digest

NUMBER = re.compile(r"-?\d+\.?\d*")


class Gsm8k(Task):
    """The task of GSM8K. `score` is 1 where correct, else 0.1 where the answer stands in closed answer tags or a closed
    box.
    """

    name = "gsm8k"
    hub = Hub("openai/gsm8k", "main")

    def read(self, row: dict[str, Any]) -> Problem:
        """Read the data set's columns; the reference follows `####` in `answer`."""
        _, marked, answer = row["answer"].rpartition("####")
        if not marked:
            raise ValueError("its answer has no ####")
        return self.problem(row["question"], float(answer.replace(",", "")))

    def from_stored(self, question: str, ground_truth: float | None) -> Problem:
        """Return the problem of a row of d1's, whose files have no ground truth where it is negative; no answer to such
        a problem counts as correct.
        """
        if ground_truth is not None and (isinstance(ground_truth, bool) or not isinstance(ground_truth, (int, float))):
            raise TypeError(f"the ground truth {ground_truth!r} is not a number")
        return self.problem(question, ground_truth)

    def problem(self, question: str, number: float | None) -> Problem:
        """Return the problem of a question and its reference."""
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{number} is no answer")
        answer = None if number is None else str(int(number)) if number == int(number) else repr(number)
        key = digest(" ".join(question.split())).hex()
        return Problem(self.name, f"{self.name}:{key}", {"question": question, "answer": answer})

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        return (
            f"{problem.fields['question']}\n\nReason step by step inside <reasoning></reasoning>. Then give the result "
            r"as one number, with neither unit nor comma, inside <answer>\boxed{}</answer>."
        )

    def format(self, problem: Problem, completion: str) -> float:
        r"""Give a sixth for each thing the prompt asks for: the four of a tagged answer, the answer being one
        `\boxed{…}`, and the reasoning in its tags before it.
        """
        return form.share([*form.tagged(completion), form.boxed(completion), form.reasoned(completion)])

    def grade(self, problem: Problem, completion: str) -> Grade:
        answer, reference = read_number(completion), problem.fields["answer"]
        correct = answer is not None and reference is not None and float(answer) == float(reference)
        return Grade(correct, 1.0 if correct else format_score(completion), answer)


def read_number(completion: str) -> str | None:
    """Return the answer as written, which `float` can read; None where there is none."""
    for inside in boxes(completion):
        if (number := _number(inside, place=0)) is not None:
            return number
    return _number(first_answer(completion) or "", place=-1)


def _number(text: str, *, place: int) -> str | None:
    """The text if it is a number as a whole (`1e3` and `inf` are), else the first or last number in it."""
    try:
        float(text)
    except ValueError:
        found = NUMBER.findall(text)
        return found[place] if found else None
    return text
