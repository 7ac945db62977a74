"""Data sets by name: where each is published, and how a source is written.

    source = place[,place…] [:rows[:seed]]
    place = NAME[@split] | NAME=PATH | file | pattern of files | (folder | hub id)[:configuration][@split]

`s1k` is the hub's data set, `s1k=copy.parquet` a local copy of it, `open-r1:3000` a seeded sample of 3,000 of its rows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remask.errors import UserError

NAMED: dict[str, str] = {
    "s1k": "simplescaling/s1K@train",
    "s1k-1.1": "simplescaling/s1K-1.1@train",
    "open-r1": "open-r1/Mixture-of-Thoughts:all@train",
    "gsm8k": "openai/gsm8k:main@train",
    "math": "DigitalLearningGmbH/MATH-lighteval:default@train",
}
"""The data set, configuration and split on the hub of each name. Each has different columns (`data/sources.py` reads
them)."""


@dataclass(frozen=True)
class Source:
    """A source says where rows come from, and how many of them are drawn (None: all)."""

    place: str
    rows: int | None = None
    seed: int = 0
    config: str | None = None
    """The configuration of a local copy in the hub's layout that is meant."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read a source's text. Raises UserError for a local copy that is not there, or no rows."""
        if text and Path(text).exists():
            return cls(text)
        match = re.fullmatch(r"(.+?)(?::(\d+)(?::(\d+))?)?", text, re.DOTALL)
        if match is None:
            raise UserError("no source of data", mend=f"give a file, a hub id, or one of {', '.join(NAMED)}")
        place, rows, seed = match[1], match[2], int(match[3] or 0)
        if "," in place and not Path(place).exists():
            parts = [cls.parse(part) for part in place.split(",")]
            if counted := [part.place for part in parts if part.rows is not None]:
                raise UserError(
                    f"{counted[0]!r} is one of several sources, and a sample is of all of them together",
                    mend="write :rows after the last one only",
                )
            return cls(",".join(part.place for part in parts), int(rows) if rows else None, seed)
        if rows is not None and int(rows) < 1:
            raise UserError(f"{text!r} asks for no rows", mend="ask for 1 or more")
        name, given, path = place.partition("=")
        if given and name in NAMED:
            if not path or not Path(path).exists():
                raise UserError("no such file", where=path, mend=f"give {name}=PATH with a copy of {NAMED[name]}")
            published = NAMED[name].rpartition("@")[0]
            return cls(path, int(rows) if rows else None, seed, published.partition(":")[2] or None)
        if not Path(place).exists():
            name, at, split = place.partition("@")
            if name in NAMED:
                place = f"{NAMED[name].rpartition('@')[0]}@{split}" if at else NAMED[name]
        return cls(place, int(rows) if rows else None, seed)

    def sample(self, rows: Iterable[tuple[str, Any]], *, where: str) -> Iterable[tuple[str, Any]]:
        """Return the rows drawn, in their original order: the same for the same seed.

        Raises UserError where there are fewer than asked for.
        """
        if self.rows is None:
            return rows
        every = list(rows)
        if len(every) < self.rows:
            raise UserError(f"has {len(every)} rows, {self.rows} were asked for", where=where, mend="ask for fewer")
        chosen = random.Random(f"sample/{self.seed}").sample(range(len(every)), self.rows)
        return [every[i] for i in sorted(chosen)]
