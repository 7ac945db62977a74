"""Rows on a canvas: prompt, response, EOS fill (methods §8). Lengths are decided here, never silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from remask.config import OnBadRow, OverLong
from remask.data.chat import encode
from remask.data.sources import Example
from remask.errors import UserError


@dataclass(frozen=True)
class Fill:
    """How far a response is extended with EOS: to the batch's longest row, a multiple of n, max_length, not at all."""

    kind: str
    multiple: int = 1

    @classmethod
    def parse(cls, text: str) -> Fill:
        """`batch | multiple:<n> | max | none`. Raises UserError for anything else."""
        kind, _, number = text.partition(":")
        if kind == "multiple" and number.isdecimal() and int(number) > 0:
            return cls(kind, int(number))
        if kind in ("batch", "max", "none") and not number:
            return cls(kind)
        raise UserError(f"unknown fill {text!r}", mend="it is batch, multiple:<n>, max or none")

    def length(self, prompt: int, response: int, *, longest_row: int, max_length: int) -> int:
        """The response's length with its fill, for a row of `prompt` + `response` tokens."""
        if self.kind == "batch":
            return longest_row - prompt
        if self.kind == "max":
            return max_length - prompt
        if self.kind == "multiple":
            return min(-(-response // self.multiple) * self.multiple, max_length - prompt)
        return response


@dataclass(frozen=True)
class Row:
    """One tokenised example."""

    prompt: list[int]
    response: list[int]
    where: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    def truncated(self, length: int) -> Row:
        """At most `length` tokens of it: the answer is cut, the prompt never."""
        return Row(self.prompt, self.response[: length - len(self.prompt)], self.where)


R = TypeVar("R")


@dataclass
class Rows(Generic[R]):
    """Tokenised rows (or pairs of them) and what became of the others."""

    rows: list[R]
    truncated: int = 0
    dropped: int = 0
    skipped: list[str] = field(default_factory=list)


def build_rows(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    on_bad_row: OnBadRow = "error",
    mask_id: int | None = None,
) -> Rows[Row]:
    """Tokenise examples into rows of at most `max_length` tokens. Raises UserError naming the row (`row_of`)."""
    built = Rows[Row]([])
    for example in examples:
        try:
            row = row_of(example, tokenizer, max_length=max_length, over_long=over_long, mask_id=mask_id)
        except UserError as error:
            if on_bad_row == "error":
                raise
            built.skipped.append(str(error))
            continue
        if len(row) > max_length:
            if over_long == "drop":
                built.dropped += 1
                continue
            row = row.truncated(max_length)
            built.truncated += 1
        built.rows.append(row)
    if not built.rows:
        raise UserError(
            f"no rows are left of {len(examples)} ({built.dropped} dropped as too long, {len(built.skipped)} skipped)",
            mend="raise canvas.max_length, or look at the rows that were skipped",
        )
    return built


def row_of(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    mask_id: int | None = None,
) -> Row:
    """The example's tokens, of any length unless `over_long` is error.

    A prompt that leaves no room for a response is a bad row unless it is dropped: truncating it would train on nothing.
    So is text with a mask in it, which nothing tells from a token that is hidden. Raises UserError naming the row.
    """
    encoded = encode(tokenizer, example.messages, example.completion, where=example.where)
    row = Row(encoded.prompt, encoded.response, example.where)
    for name, ids in (("prompt", row.prompt), ("answer", row.response)):
        if mask_id is not None and mask_id in ids:
            raise UserError(
                f"the {name} contains the mask token {tokenizer.decode([mask_id])!r}",
                where=row.where,
                mend="take it out of the text, or skip such rows with --on-bad-row skip",
            )
    if len(row.prompt) >= max_length and over_long != "drop":
        raise UserError(
            f"the prompt takes {len(row.prompt)} tokens of a canvas of {max_length}: no response fits",
            where=row.where,
            mend="raise canvas.max_length, or skip such rows with --on-bad-row skip",
        )
    if len(row) > max_length and over_long == "error":
        raise UserError(
            f"the row takes {len(row)} tokens, the canvas holds {max_length}",
            where=row.where,
            mend="raise canvas.max_length, or set canvas.over_long to truncate or drop",
        )
    return row
