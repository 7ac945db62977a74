"""Training rows that are what a model is tested on, or nearly so.

A text is known by its runs of eight words, in small letters, with every number read as 0: the same problem with other
numbers is the same text. A row is near a text where it has at least half of the text's runs. Texts of fewer than eight
words say too little and are passed over.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from remask.data.files import Unreadable, read_rows
from remask.data.named import Source
from remask.data.sources import Example, Loaded
from remask.errors import UserError

WORDS = 8
SHARE = 0.5
WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+")
E = TypeVar("E", bound=Example)


@dataclass(frozen=True)
class Near:
    """A row that is near a text: where both stand, and the share of the text's runs that the row has."""

    row: str
    text: str
    share: float


def runs(text: str) -> set[tuple[str, ...]]:
    """Return the runs of eight words of a text; none where it has fewer."""
    words = ["0" if word[0].isdigit() else word for word in WORD.findall(text.lower())]
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


class Tested:
    """The texts that a model is tested on: every column of text in the rows of some sources, joined by commas.

    Raises UserError where a source cannot be read, or has no text of eight words.
    """

    def __init__(self, sources: str) -> None:
        self.where: list[str] = []
        self.sizes: list[int] = []
        self.having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for where, text in _texts(sources):
            if found := runs(text):
                for run in found:
                    self.having[run].append(len(self.where))
                self.where.append(where)
                self.sizes.append(len(found))
        if not self.where:
            raise UserError(f"has no text of {WORDS} words or more", where=sources, mend="give rows with texts")

    def near(self, example: Example) -> Near | None:
        """Return the text that the row is nearest to, where it is near one."""
        said = [str(message.get("content") or "") for message in example.messages]
        row = set().union(*(runs(text) for text in (*said, example.completion)))
        shared = Counter(number for run in row for number in self.having.get(run, ()))
        best = max(shared, key=lambda number: (shared[number] / self.sizes[number], -number), default=None)
        if best is None or shared[best] < SHARE * self.sizes[best]:
            return None
        return Near(example.where, self.where[best], shared[best] / self.sizes[best])

    def apart(self, examples: Sequence[E]) -> tuple[list[E], list[Near]]:
        """Return the rows that are near no text, and what the others are near to."""
        found = [self.near(example) for example in examples]
        kept = [example for example, near in zip(examples, found, strict=True) if near is None]
        return kept, [near for near in found if near is not None]


def leave_out(source: str, loaded: Loaded[Example], tested: str) -> list[Near]:
    """Take rows near a tested text out of those that were loaded, say on stderr how many, and return them.

    Raises UserError where nothing is left.
    """
    rows = len(loaded.examples)
    loaded.examples, near = Tested(tested).apart(loaded.examples)
    if not loaded.examples:
        raise UserError(f"all {rows} rows are near texts of {tested}", where=source, mend="train on other rows")
    if near:
        one = max(near, key=lambda found: found.share)
        print(
            f"{source}: {len(near)} of {rows} rows left out, as they are near what is tested; for example {one.row} "
            f"has {100 * one.share:.0f} % of {one.text}",
            file=sys.stderr,
        )
    return near


def _texts(sources: str) -> Iterable[tuple[str, str]]:
    """Where it stands, and the text, of each column of text."""
    parsed = Source.parse(sources)
    for where, row in parsed.sample(read_rows(parsed.place, split="test", config=parsed.config), where=sources):
        if isinstance(row, Unreadable) or not isinstance(row, dict):
            reason = row.reason if isinstance(row, Unreadable) else "is no mapping of columns"
            raise UserError(reason, where=where, mend="correct it there")
        for value in row.values():
            if isinstance(value, str):
                yield where, value
