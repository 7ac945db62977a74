"""Where published protocols find the answer in a completion: boxes, answer tags, and where a text stops.

The rules are those of d1's evaluation (Zhao et al. 2025, arXiv:2504.12216), which later work on LLaDA reports with.
They read raw text, special tokens kept; each takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

STOPS = ("<|eot_id|>", "<|endoftext|>")
SPECIAL = re.compile(r"<\|\w+\|>")
TAG = re.compile(r"</?[a-z]+>|<\|\w+\|>")
LETTER = re.compile(r"[^\W\d_]")
BOX = r"\boxed{"
BRACE = re.compile(r"[{}]")


def with_stop(text: str) -> str:
    """Return the text as the model wrote it: one without stop tokens has been decoded, and ended in one."""
    return text if any(stop in text for stop in STOPS) else text + STOPS[0]


def has_box(text: str) -> bool:
    """Return whether a text has the command of a box."""
    return r"\boxed" in text or r"\fbox" in text


def boxes(text: str) -> Iterator[str]:
    r"""Yield what stands between each `\boxed{` and the next `}` on its line, stripped."""
    for line in text.split("\n"):
        end = 0
        while (start := line.find(BOX, end)) >= 0 and (end := line.find("}", start)) >= 0:
            yield line[start + len(BOX) : end].strip()


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last box; without a box the whole text; None where its braces never close.

    `\boxed 3` (a blank, no brace) goes before every other box and runs to the next dollar sign. A box that is not
    `\boxed{…}`, such as an `\fbox`, is given with its command.
    """
    _, blank, rest = text.rpartition(r"\boxed ")
    if blank:
        return rest.partition("$")[0]
    start = text.rfind(r"\boxed")
    if start < 0:
        start = text.rfind(r"\fbox")
    if start < 0:
        return text
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if brace[0] == "}" and depth == 0:
            box = text[start : brace.end()]
            return box[len(BOX) : -1] if box.startswith(BOX) else box
    return None


def first_answer(text: str) -> str | None:
    """Return what stands in the first `<answer>`, stripped; None where it is not closed."""
    inside, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if closed else None


def format_score(text: str) -> float:
    r"""Return the dense reward of a wrong answer: 0.1 where it stands in closed answer tags or a closed `\boxed{…}`."""
    return 0.1 if first_answer(text) is not None or (BOX in text and last_boxed(text) is not None) else 0.0


def is_wordless(text: str) -> bool:
    """Return whether there is an answer tag and not one letter outside it: the form of worked answers, which is not
    that of prose.
    """
    before, opened, rest = text.rpartition("<answer>")
    around = TAG.sub("", before + "\n" + rest.partition("</answer>")[2])
    return bool(opened) and LETTER.search(around) is None
