"""The form of an answer, whatever the answer is worth: which of the things asked for it keeps. Linear in the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from remask.tasks.extraction import BOX, BRACE, SPECIAL

EMPTY_BOX = re.compile(r"\\boxed\{\s*\}")


def share(kept: Sequence[bool]) -> float:
    """Return how much of what was asked for is kept, in [0, 1]."""
    return sum(kept) / len(kept)


def tagged(text: str) -> list[bool]:
    """Return which of the things asked of an answer in tags it keeps: one `<answer>`; one `</answer>`, after it;
    something between these two, which an empty box is not; after the answer nothing but white space and special tokens.
    """
    inside, closed, after = text.partition("<answer>")[2].partition("</answer>")
    opens = text.count("<answer>") == 1
    closes = bool(closed) and text.count("</answer>") == 1
    return [opens, closes, opens and closes and _says(EMPTY_BOX.sub("", inside)), closes and not _says(after)]


def boxed(text: str) -> bool:
    r"""Return whether the answer between the tags is one closed `\boxed{…}` that holds something, and nothing else."""
    opens, closes, filled, _ = tagged(text)
    if not (opens and closes and filled):
        return False
    inside = text.partition("<answer>")[2].partition("</answer>")[0].strip()
    depth = 0
    for brace in BRACE.finditer(inside):
        depth += 1 if brace[0] == "{" else -1
        if depth <= 0:
            return inside.startswith(BOX) and brace.end() == len(inside)
    return False


def reasoned(text: str) -> bool:
    """Return whether there is one `<reasoning>…</reasoning>` with something in it, before the answer."""
    before = text.partition("<answer>")[0]
    inside, closed, _ = before.partition("<reasoning>")[2].partition("</reasoning>")
    return bool(closed) and text.count("<reasoning>") == text.count("</reasoning>") == 1 and _says(inside)


def _says(text: str) -> bool:
    return bool(SPECIAL.sub("", text).strip())
