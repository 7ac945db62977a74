"""Rows of one's own as a task: an answer is right where it matches the row's, by one of four rules.

| task | an answer is right where |
|---|---|
| `match` | it has the reference's number, where the reference is a number; else it is the same text, normalised |
| `match_exact` | it is the same text, white space around it aside |
| `match_numeric` | its last number is the reference's last number |
| `match_regex` | the reference, a regular expression, is found in it |

What is compared is the last `<answer>…</answer>`, else the last closed `\\boxed{…}`, else what follows the last `####`,
else the whole text without its `<think>…</think>`; in the reference as in the answer. Normalised means: Unicode's
compatibility forms made one, no case, single spaces, and no punctuation or emphasis at the ends. Rows have the layouts
that fine-tuning reads (`data/columns.py`), conversations and system turns included.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

import regex

from remask.chat_template import Message
from remask.choices import PromptStyle
from remask.data.columns import answered, refuse_labels
from remask.tasks.base import Grade, Problem, Task, answer_text
from remask.tasks.extraction import BOX, last_boxed
from remask.tasks.generator import digest

NUMBER = re.compile(
    r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*[/⁄]\s*\d+(?:\.\d+)?)?"
)
AROUND = " \t\r\n.,;:!?\"'`*_$()[]{}“”‘’«»"
"""The characters that may stand around a normalised answer: punctuation, quotes and emphasis."""
UNITS = "$€£¥%°"
"""The signs that may stand beside a number that is an answer as a whole."""
MOST_SECONDS = 1.0
"""The seconds that a pattern may search one answer."""


class Match(Task):
    """A task whose answers are compared with a reference. `score` is 1 where right. Every answer is also compared by
    the other rules, as `metrics`.
    """

    name = "match"
    metrics = ("exact", "normalised")

    def read(self, row: dict[str, Any]) -> Problem:
        refuse_labels(row, "")
        found = answered(row, "")
        if found.tools or set(found.answer) - {"role", "content"}:
            raise ValueError("rows with tools or with more than text for an answer are not compared")
        reference = found.answer["content"]
        self.check(reference)
        said = [f"{turn['role']}: {turn['content']}" for turn in found.messages]
        key = digest("\n".join([*said, reference])).hex()
        fields = {"messages": found.messages, "answer": reference}
        return Problem(self.name, f"{self.name}:{key}", fields)

    def check(self, reference: str) -> None:
        """Raises ValueError for a reference that nothing could match."""
        if not normalised(final(reference)):
            raise ValueError("its answer is empty")

    def turns(self, problem: Problem) -> list[Message]:
        return [dict(turn) for turn in problem.fields["messages"]]

    def prompt(self, problem: Problem, style: PromptStyle) -> str:
        return str(problem.fields["messages"][-1]["content"])

    def grade(self, problem: Problem, completion: str) -> Grade:
        reference, answer = str(problem.fields["answer"]), final(completion)
        right = self.right(reference, completion)
        metrics = {
            "exact": float(answer == final(reference)),
            "normalised": float(normalised(answer) == normalised(final(reference))),
        }
        return Grade(right, float(right), answer, metrics)

    def right(self, reference: str, completion: str) -> bool:
        """Return whether an answer's text agrees with the reference."""
        wanted = final(reference)
        if (number := whole_number(wanted)) is not None:
            return same(number, last_number(final(completion)))
        return normalised(final(completion)) == normalised(wanted)


class MatchExact(Match):
    """A task whose answers must equal the reference, character by character."""

    name = "match_exact"

    def right(self, reference: str, completion: str) -> bool:
        return final(completion) == final(reference)


class MatchNumeric(Match):
    """A task whose answers must have the reference's value."""

    name = "match_numeric"

    def check(self, reference: str) -> None:
        if last_number(final(reference)) is None:
            raise ValueError("its answer holds no number")

    def right(self, reference: str, completion: str) -> bool:
        number = last_number(final(reference))
        return number is not None and same(number, last_number(final(completion)))


class MatchRegex(Match):
    """A task whose answers must match the reference as a pattern."""

    name = "match_regex"

    def check(self, reference: str) -> None:
        try:
            regex.compile(reference)
        except regex.error as error:
            raise ValueError(f"its answer is no regular expression ({error})") from None

    def right(self, reference: str, completion: str) -> bool:
        try:
            return regex.search(reference, completion, timeout=MOST_SECONDS) is not None
        except TimeoutError:
            return False


def final(text: str) -> str:
    """Return the part of a text that is its answer."""
    text = text.rpartition("</think>")[2]
    if (tagged := answer_text(text)) is not None:
        text = tagged
    if BOX in text and (boxed := last_boxed(text)) is not None:
        text = boxed
    return text.rpartition("####")[2].strip()


def normalised(text: str) -> str:
    """Return a text in the normal form that answers are compared in."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(AROUND)


def whole_number(text: str) -> float | None:
    """Return the value of a text that is a number and nothing else but units of currency, per cent or degrees."""
    bare = normalised(text).strip(UNITS + AROUND)
    return last_number(bare) if NUMBER.fullmatch(bare) else None


def last_number(text: str) -> float | None:
    """Return the value of the last number in a text: `1,234`, `3/4`, `-2.5e3`."""
    found = NUMBER.findall(text)
    if not found:
        return None
    above, _, below = found[-1].replace(",", "").replace("−", "-").replace("⁄", "/").partition("/")
    try:
        value = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def same(a: float, b: float | None) -> bool:
    """Return whether two values are equal, up to rounding."""
    return b is not None and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
