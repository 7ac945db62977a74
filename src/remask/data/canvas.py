"""Rows on a canvas: prompt, answer, EOS fill. Lengths are decided here, never silently."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from transformers import PreTrainedTokenizerBase

from remask.choices import FillName, OnBadRow, OverLong, values
from remask.data.chat import encode
from remask.data.near import Near
from remask.data.sources import Example, Loaded
from remask.errors import UserError
from remask.progress import progress


@dataclass(frozen=True)
class Fill:
    """The rule by which a response is extended with EOS: to the batch's longest row, a multiple of n, a whole block of
    n counted from the row's first token, max_length, or not at all.
    """

    kind: str
    multiple: int = 1

    @classmethod
    def parse(cls, text: str) -> Fill:
        """Read `batch | multiple:<n> | block:<n> | max | none`. Raises UserError for any other text."""
        kind, _, number = text.partition(":")
        if kind in ("multiple", "block") and number.isdecimal() and int(number) > 0:
            return cls(kind, int(number))
        if kind in ("batch", "max", "none") and not number:
            return cls(kind)
        raise UserError(f"unknown fill {text!r}", mend=f"the choices are {', '.join(values(FillName))}")

    def length(self, prompt: int, response: int, *, longest_row: int, max_length: int) -> int:
        """Return the response's length with its fill, for a row of `prompt` + `response` tokens."""
        if self.kind == "batch":
            return longest_row - prompt
        if self.kind == "max":
            return max_length - prompt
        if self.kind == "multiple":
            return min(-(-response // self.multiple) * self.multiple, max_length - prompt)
        if self.kind == "block":
            return min(-(-(prompt + response) // self.multiple) * self.multiple, max_length) - prompt
        return response


@dataclass(frozen=True)
class Row:
    """A row is one tokenised example."""

    prompt: list[int]
    response: list[int]
    where: str
    unread: tuple[str, ...] = ()
    """The message keys that the chat template did not read."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def prompt_length(self) -> int:
        """Return the number of the prompt's tokens."""
        return len(self.prompt)

    def truncated(self, length: int) -> Row:
        """Return the row with at most `length` tokens: the answer is cut, the prompt never."""
        return replace(self, response=self.response[: length - len(self.prompt)])


class Tokenised(Protocol):
    """A row, or a pair of rows, as `fitted` sees it: a pair's length is that of the longer one."""

    @property
    def where(self) -> str: ...

    @property
    def unread(self) -> tuple[str, ...]: ...

    @property
    def prompt_length(self) -> int: ...

    def __len__(self) -> int: ...

    def truncated(self, length: int) -> Self: ...


E = TypeVar("E")
R = TypeVar("R", bound=Tokenised)
LONG = 2000
"""The number of rows above which progress is shown while they are tokenised."""


@dataclass
class Rows(Generic[R]):
    """Tokenised rows (or pairs of them) with what became of the others, and how many rows have each key that is not
    read.

    near: those left out because the model is to be tested on them, or nearly so.
    """

    rows: list[R]
    truncated: int = 0
    dropped: int = 0
    skipped: list[str] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def build_rows(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    on_bad_row: OnBadRow = "error",
    mask_id: int | None = None,
) -> Rows[Row]:
    """Tokenise examples into rows of at most `max_length` tokens. Raises UserError naming the row (`fitted`)."""
    return fitted(
        examples,
        lambda example: row_of(example, tokenizer, mask_id=mask_id),
        max_length=max_length,
        over_long=over_long,
        on_bad_row=on_bad_row,
    )


def row_of(example: Example, tokenizer: PreTrainedTokenizerBase, *, mask_id: int | None = None) -> Row:
    """Return the example's tokens, of any length.

    Raises UserError naming the row where it cannot be encoded, or holds a mask token, which would look like a token
    that is masked.
    """
    encoded = encode(tokenizer, example.messages, example.answer, where=example.where, tools=example.tools)
    for name, ids in (("prompt", encoded.prompt), ("answer", encoded.response)):
        if mask_id is not None and mask_id in ids:
            raise UserError(
                f"the {name} contains the mask token {tokenizer.decode([mask_id])!r}",
                where=example.where,
                mend="take it out of the text, or skip such rows with --on-bad-row skip",
            )
    return Row(encoded.prompt, encoded.response, example.where, encoded.unread)


def fitted(
    examples: Sequence[E],
    tokenised: Callable[[E], R],
    *,
    max_length: int,
    over_long: OverLong,
    on_bad_row: OnBadRow,
    check: Callable[[R, bool], None] = lambda row, cut: None,
) -> Rows[R]:
    """Return the rows of the examples, each of at most `max_length` tokens. `check(row, cut)` is called with whether a
    row was cut.

    A prompt that leaves no room for an answer is a bad row unless it is dropped: truncating it would train on nothing.
    All rows are read before one that is too long is an error, so that it can say which canvas would hold them. Raises
    UserError naming the first bad row.
    """
    built = Rows[R]([])
    lengths, misfits = list[int](), list[R]()
    with progress("tokenising rows", len(examples), enabled=len(examples) > LONG) as tick:
        for number, example in enumerate(examples, 1):
            tick(number)
            try:
                row = tokenised(example)
                lengths.append(len(row))
                cut = len(row) > max_length or row.prompt_length >= max_length
                if cut and over_long == "drop":
                    built.dropped += 1
                    continue
                if cut and (over_long == "error" or row.prompt_length >= max_length):
                    misfits.append(row)
                    continue
                row = row.truncated(max_length) if cut else row
                check(row, cut)
            except UserError as error:
                if on_bad_row == "error":
                    raise
                built.skipped.append(str(error))
                continue
            built.truncated += cut
            built.unread.update(f"message key {key}" for key in row.unread)
            built.rows.append(row)
    if misfits and on_bad_row == "error":
        raise too_long(misfits[0], len(misfits), lengths, max_length)
    built.skipped += [str(too_long(row, 1, [len(row)], max_length)) for row in misfits]
    if not built.rows:
        raise UserError(
            f"none of {len(examples)} rows can be used: {built.dropped} are too long, {len(built.skipped)} faulty",
            mend="raise canvas.max_length, or see what is wrong with --on-bad-row error",
        )
    return built


def too_long(first: Tokenised, count: int, lengths: Sequence[int], max_length: int) -> UserError:
    """Return the error for `count` rows of these `lengths` that a canvas does not hold, the first of which is given."""
    if first.prompt_length >= max_length:
        what = f"the prompt takes {first.prompt_length} tokens of a canvas of {max_length}: no answer fits"
    else:
        what = f"the row takes {len(first)} tokens, the canvas holds {max_length}"
    ordered = sorted(lengths)
    if len(ordered) > 1:
        holds = [f"{ordered[-(-len(ordered) * share // 100) - 1]} hold {share} %" for share in (95, 99, 100)]
        what += f"; {count} of {len(ordered)} rows are too long ({', '.join(holds)} of them all)"
    return UserError(
        what, where=first.where, mend="raise canvas.max_length, or set canvas.over_long to truncate or drop"
    )


def tell_faults(source: str, loaded: Loaded[Any], built: Rows[Any]) -> None:
    """Write to stderr how many rows of a source are not as they stand in it, and which columns and keys are unused."""
    total = len(loaded.examples) + len(loaded.skipped)
    for name, count in (("truncated", built.truncated), ("dropped", built.dropped), ("skipped", len(built.skipped))):
        if count:
            print(f"{source}: {count} of {total} rows {name}", file=sys.stderr)
    unread = loaded.unread + built.unread
    if unread:
        named = ", ".join(f"{name} ({count} of {total} rows)" for name, count in sorted(unread.items()))
        print(f"{source}: not used: {named}", file=sys.stderr)
