r"""MATH-500: 500 competition problems (Hendrycks et al. 2021, arXiv:2103.03874; split of Lightman et al. 2023).

Graded as d1 does: the last box's content, else the first `<answer>…</answer>`, must equal the reference after the
normalisation of the MATH data set (`normal_form`). That is a comparison of strings: 0.25 is not \frac{1}{4}. The metric
`math_verify` is the verdict of the library of that name, which compares values.
"""

from __future__ import annotations

import re
from typing import Any

from remask.choices import PromptStyle
from remask.tasks import form
from remask.tasks.base import Grade, Hub, Problem, Task
from remask.tasks.extraction import SPECIAL, first_answer, format_score, has_box, last_boxed
from remask.tasks.generator import digest
from remask.tasks.verifier import Verifier

REPLACED = (
    ("\n", ""),
    (r"\!", ""),
    (r"\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
)
UNIT = r"\text{ "


class Math500(Task):
    """The task of MATH-500. `score` is 1 where correct, else 0.1 where the answer stands in closed answer tags or a
    closed box.
    """

    name = "math500"
    metrics = ("math_verify",)
    hub = Hub("HuggingFaceH4/MATH-500")

    def __init__(self) -> None:
        self.verifier = Verifier()

    def read(self, row: dict[str, Any]) -> Problem:
        """Read the data set's columns; some releases leave out subject and level."""
        further = {name: row[name] for name in ("subject", "level") if name in row}
        return self.problem(row["problem"], row["answer"], **further)

    def from_stored(self, question: str, ground_truth: str) -> Problem:
        return self.problem(question, ground_truth)

    def problem(self, question: str, answer: str, **further: Any) -> Problem:
        """Return the problem of a question and its reference."""
        if not isinstance(answer, str):
            raise TypeError(f"the answer {answer!r} is not a text")
        key = digest(" ".join(question.split())).hex()
        return Problem(self.name, f"{self.name}:{key}", {"question": question, "answer": answer, **further})

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        return (
            f"{problem.fields['question']}\n\nReason step by step inside <reasoning></reasoning>. Then give the result "
            r"in its simplest form inside <answer>\boxed{}</answer>."
        )

    def format(self, problem: Problem, completion: str) -> float:
        r"""Give a sixth for each thing the prompt asks for: the four of a tagged answer, the answer being one
        `\boxed{…}`, and the reasoning in its tags before it.
        """
        return form.share([*form.tagged(completion), form.boxed(completion), form.reasoned(completion)])

    def grade(self, problem: Problem, completion: str) -> Grade:
        reference, answer = problem.fields["answer"], read_answer(completion)
        correct = answer is not None and is_equivalent(answer, reference)
        verified = self.verifier.agrees(reference, SPECIAL.sub("", completion))
        score = 1.0 if correct else format_score(completion)
        return Grade(correct, score, answer, {"math_verify": float(verified)})


class Math(Math500):
    """The task of the whole MATH data set, 7,500 problems to train on and 5,000 to test: MATH-500 is of the latter."""

    name = "math"
    hub = Hub("DigitalLearningGmbH/MATH-lighteval", "default")

    def read(self, row: dict[str, Any]) -> Problem:
        """Read a row; the answer is what the solution's last box holds."""
        answer = last_boxed(row["solution"]) if has_box(row["solution"]) else None
        if not answer:
            raise ValueError("its solution has no box")
        further = {name: row[name] for name in ("type", "level") if name in row}
        return self.problem(row["problem"], answer, **further)


def read_answer(completion: str) -> str | None:
    """Return the last box's content; where it is empty or never closes, what the answer tags hold. Without a box it is
    the whole text, which is never right, whatever the answer tags hold.
    """
    boxed = last_boxed(completion)
    if boxed:
        return boxed
    tagged = first_answer(completion)
    return boxed if tagged is None else tagged


def is_equivalent(answer: str, reference: str) -> bool:
    """Return whether two answers are equal in normal form; as written, where either has none."""
    try:
        return normal_form(answer) == normal_form(reference)
    except ValueError:
        return answer == reference


def normal_form(answer: str) -> str:
    r"""Return the answer without blanks, units, degrees, percent and dollar signs, with `\frac` and `\sqrt`
    in braces.

    Raises ValueError where the MATH data set's rules break off: two units, a `\frac` or `\sqrt` of nothing, or a single
    slash between anything but whole numbers.
    """
    text = answer
    for old, new in REPLACED:
        text = text.replace(old, new)
    text, *units = text.split(UNIT)
    if len(units) > 1:
        raise ValueError("two units")
    text = text.replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, _, value = text.partition("=")
    if text.count("=") == 1 and len(name) <= 2:  # "x = 3" is 3
        text = value
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return r"\frac{1}{2}"
    if text.count("/") == 1:
        top, bottom = map(int, text.split("/"))
        if text == f"{top}/{bottom}":
            return rf"\frac{{{top}}}{{{bottom}}}"
    return text


def _braced_roots(text: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`."""
    if re.search(r"\\sqrt(?:\\sqrt|\Z)", text):
        raise ValueError("a root of nothing")
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _braced_fractions(text: str) -> str:
    r"""`\frac12`, `\frac1{2}` as `\frac{1}{2}`; one that lacks its second part leaves the text as it was."""
    head, *parts = text.split(r"\frac")
    braced = [head]
    for part in parts:
        if not part:
            raise ValueError("a fraction of nothing")
        if part[0] == "{":
            braced.append(part)
        elif len(part) == 1:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            braced.append(f"{{{part[0]}}}{below}")
    return r"\frac".join(braced)
