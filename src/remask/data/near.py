"""Training rows that are what a model is tested on, or nearly so.

A text is known by its runs of eight words, in small letters, with every number read as 0: the same problem with other
numbers is the same text. In scripts without blanks between words each character is one. Runs that many texts have (an
instruction that stands before every problem) say nothing and are left out. A row is near a text where it has at least
half of the text's runs. Texts of fewer than eight words say too little and are passed over, and counted.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from remask.data.files import Unreadable, read_rows
from remask.data.named import NAMED, Source
from remask.data.sources import Example, Loaded
from remask.errors import UserError

WORDS = 8
SHARE = 0.5
MANY = 10
"""The number of texts above which a run that they share is no text's own."""
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f"
"""Characters of Japanese, Chinese and Thai, which are written without blanks between words."""
WORD = re.compile(rf"\d+(?:[.,]\d+)*|[{UNSPACED}]|[^\W{UNSPACED}]+")
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
    """The texts that a model is tested on: every text in the rows of some sources, joined by commas, also inside lists
    and mappings (conversations). passed_over: how many texts of each source say too little to be known.

    Raises UserError where a source cannot be read or has no text that says enough, and for the name of a data set
    without its split.
    """

    def __init__(self, sources: str) -> None:
        self.where: list[str] = []
        self.sizes: list[int] = []
        self.having: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.passed_over: Counter[str] = Counter()
        for source in _parts(sources):
            texts = [(where, runs(text)) for where, text in _texts(source)]
            shared = Counter(run for _, found in texts for run in found)
            before = len(self.where)
            for where, found in texts:
                if own := {run for run in found if shared[run] <= MANY}:
                    for run in own:
                        self.having[run].append(len(self.where))
                    self.where.append(where)
                    self.sizes.append(len(own))
            if len(self.where) == before:
                raise UserError(f"has no text of {WORDS} words or more of its own", where=source, mend="give its texts")
            self.passed_over[source] = len(texts) - (len(self.where) - before)

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
    rows, texts = len(loaded.examples), Tested(tested)
    loaded.examples, near = texts.apart(loaded.examples)
    if not loaded.examples:
        raise UserError(f"all {rows} rows are near texts of {tested}", where=source, mend="train on other rows")
    known = len(texts.where)
    said = f"{source}: compared with {known} text{'' if known == 1 else 's'} that will be tested"
    if passed := texts.passed_over.total():
        said += f" ({passed} shorter or common ones passed over)"
    said += f", {len(near)} of {rows} rows left out"
    if near:
        one = max(near, key=lambda found: found.share)
        said += f"; for example {one.row} has {100 * one.share:.0f} % of {one.text}"
    print(said, file=sys.stderr)
    return near


def _parts(sources: str) -> list[str]:
    """Each source by itself: a comma stands between two, but where all of it is one file's name."""
    parts = [sources] if Path(sources).exists() else sources.split(",")
    if bare := next((part for part in parts if part in NAMED), None):
        raise UserError(f"{bare} are its rows to train on", where="apart_from", mend=f"write {bare}@test, or a file")
    return parts


def _texts(source: str) -> Iterator[tuple[str, str]]:
    """Where it stands, and the text, of each text of the rows."""
    parsed = Source.parse(source)
    for where, row in parsed.sample(read_rows(parsed.place, split="test", config=parsed.config), where=source):
        if isinstance(row, Unreadable) or not isinstance(row, dict):
            reason = row.reason if isinstance(row, Unreadable) else "is no mapping of columns"
            raise UserError(reason, where=where, mend="correct it there")
        for text in _inside(row):
            yield where, text


def _inside(value: Any) -> Iterator[str]:
    """The texts in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _inside(part)
